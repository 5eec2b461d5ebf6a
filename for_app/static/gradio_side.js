// The two hidden fields by which Gradio's tabs know the index and the tab that are chosen here.

/** Put a value into a field of Gradio's, as typing would. */
export function tell(field, value) {
  const input = document.querySelector(`#${field} textarea, #${field} input`);
  if (!input || input.value === value) return;
  const prototype = input instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
  Object.getOwnPropertyDescriptor(prototype.prototype, "value").set.call(input, value);
  input.dispatchEvent(new Event("input", { bubbles: true }));
}
