// Asking the server: JSON, pieces of HTML, uploads.

/** The address of a route with its parameters; those that are undefined are left out, a list is repeated. */
export function routeTo(name, params) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params))
    for (const each of Array.isArray(value) ? value : [value])
      if (each !== undefined && each !== null && each !== "") query.append(key, each);
  return `for/${name}?${query}`;
}

async function fetched(address, options) {
  let response;
  try {
    response = await fetch(address, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server can't be reached: is it still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Error(said.error || said.detail || `The server answered ${response.status}`);
}

/** The JSON that a route answers. Throws an Error whose message is a line for the visitor. */
export const askJson = async (name, params, signal) => (await fetched(routeTo(name, params), { signal })).json();

/** The HTML that a route answers. */
export const askHtml = async (name, params, signal) => (await fetched(routeTo(name, params), { signal })).text();

/** The JSON that a route answers which changes something: its parameters go as a form's fields. */
export async function postForm(name, params) {
  const [address, fields] = routeTo(name, params).split("?");
  const headers = { "content-type": "application/x-www-form-urlencoded" };
  return (await fetched(address, { method: "POST", body: fields, headers })).json();
}

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
