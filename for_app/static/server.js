// Asking the server: JSON, pieces of HTML, uploads.

/** The address of a route with its parameters; those that are undefined are left out, a list is repeated. */
export function routeTo(name, params) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params))
    for (const each of Array.isArray(value) ? value : [value])
      if (each !== undefined && each !== null && each !== "") query.append(key, each);
  return `for/${name}?${query}`;
}

async function fetched(name, params, signal) {
  let response;
  try {
    response = await fetch(routeTo(name, params), { signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server can't be reached: is it still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Error(said.error || said.detail || `The server answered ${response.status}`);
}

/** The JSON that a route answers. Throws an Error whose message is a line for the visitor. */
export const askJson = async (name, params, signal) => (await fetched(name, params, signal)).json();

/** The HTML that a route answers. */
export const askHtml = async (name, params, signal) => (await fetched(name, params, signal)).text();

/** Upload an image as Gradio's own fields do. Returns `folder/name`, by which the server finds it again. */
export async function uploadImage(file) {
  const body = new FormData();
  body.append("files", file, file.name || "pasted.png");
  let response;
  try {
    response = await fetch("gradio_api/upload", { method: "POST", body, credentials: "same-origin" });
  } catch {
    throw new Error("The image could not be sent");
  }
  if (!response.ok) {
    const said = await response.text();
    let detail = said;
    try { detail = JSON.parse(said).detail || said; } catch { /* a line of text */ }
    throw new Error(`The image can't be used: ${String(detail).slice(0, 200)}`);
  }
  const [path] = await response.json();
  return path.split(/[\\/]/).slice(-2).join("/");
}
