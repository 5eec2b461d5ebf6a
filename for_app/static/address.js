// What is shown, as the page's address says it: Back goes back a search, and a link shows what its sender saw.

const SINGLE = ["tab", "index", "q", "like", "part", "upload", "k", "n", "least", "where", "show", "table", "open"];

const LISTS = ["method", "all", "any", "none"];

/** What an image can be marked as. */
export const KINDS = ["right", "wrong"];

/** What names a mark of a part of an image: `right-part=3@ID`. */
export const PART = "-part";

/** The state that the address says; those of LISTS are lists, `marks` are [kind, id], or [kind, id, part], in the order in
 * which they were given, the later of two of one image; all else is text or undefined. */
export function readAddress() {
  const params = new URLSearchParams(location.search);
  const state = {};
  for (const name of LISTS) state[name] = params.getAll(name);
  for (const name of SINGLE) if (params.get(name)) state[name] = params.get(name);
  const marks = new Map();
  for (const [name, value] of params) {
    const kind = name.endsWith(PART) ? name.slice(0, -PART.length) : name;
    if (!KINDS.includes(kind)) continue;
    const at = value.indexOf("@");
    const [id, ...part] = kind === name ? [value] : [value.slice(at + 1), value.slice(0, at)];
    if (!id || part[0] === "") continue;
    marks.delete(id);
    marks.set(id, [kind, id, ...part]);
  }
  state.marks = [...marks.values()];
  return state;
}

/** The name and value that say a mark, in the page's address and to the server. */
export const parameterOf = ([kind, id, part]) => (part === undefined ? [kind, id] : [kind + PART, `${part}@${id}`]);

/** The lists of these, empty. */
export const unmarked = () => Object.fromEntries(KINDS.flatMap((kind) => [[kind, []], [kind + PART, []]]));

/** The address of a state. */
export function addressOf(state) {
  const params = new URLSearchParams();
  for (const name of SINGLE) if (state[name] && !(name === "tab" && state.tab === "search")) params.set(name, state[name]);
  for (const name of LISTS) for (const each of state[name] || []) params.append(name, each);
  for (const mark of state.marks || []) params.append(...parameterOf(mark));
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
