// What is shown, as the page's address says it: Back goes back a search, and a link shows what its sender saw.

const SINGLE = ["tab", "index", "q", "like", "part", "upload", "k", "n", "least", "where", "show", "table", "open"];

const LISTS = ["method", "all", "any", "none"];

/** What an image can be marked as. */
export const KINDS = ["right", "wrong"];

/** The state that the address says; those of LISTS are lists, `marks` are [kind, id] in the order in which they were
 * given, the later of two of one image; all else is text or undefined. */
export function readAddress() {
  const params = new URLSearchParams(location.search);
  const state = {};
  for (const name of LISTS) state[name] = params.getAll(name);
  for (const name of SINGLE) if (params.get(name)) state[name] = params.get(name);
  const marks = new Map();
  for (const [name, value] of params) {
    if (!KINDS.includes(name) || !value) continue;
    marks.delete(value);
    marks.set(value, name);
  }
  state.marks = [...marks].map(([id, kind]) => [kind, id]);
  return state;
}

/** The address of a state. */
export function addressOf(state) {
  const params = new URLSearchParams();
  for (const name of SINGLE) if (state[name] && !(name === "tab" && state.tab === "search")) params.set(name, state[name]);
  for (const name of LISTS) for (const each of state[name] || []) params.append(name, each);
  for (const [kind, id] of state.marks || []) params.append(kind, id);
  const text = params.toString();
  return location.pathname + (text ? `?${text}` : "");
}

/** Write a state into the address: as a new step of the history, or in place of the one that is shown. */
export function writeAddress(state, inPlace) {
  const address = addressOf(state);
  if (address === location.pathname + location.search) return;
  if (inPlace) {
    history.replaceState(history.state, "", address);
  } else {
    history.replaceState({ ...history.state, scroll: scrollY }, "");
    history.pushState({ ours: true }, "", address);
  }
}
