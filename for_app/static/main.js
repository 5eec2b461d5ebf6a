// The page's state, and what each part of the page makes of it.

import { addressOf, parameterOf, readAddress, unmarked, writeAddress } from "./address.js";
import { askJson, uploadImage } from "./server.js";
import { tell } from "./gradio_side.js";
import { Boards } from "./boards.js";
import { Comparison } from "./comparison.js";
import { Concepts } from "./concepts.js";
import { Marks } from "./marks.js";
import { Results } from "./results.js";
import { Viewer } from "./viewer.js";

const of = (id) => document.getElementById(id);

/** What of the state says what is looked for, and what was made of it: none of it. */
const NOTHING_ASKED = { q: undefined, like: undefined, part: undefined, upload: undefined, open: undefined, marks: [], show: undefined, all: [], any: [], none: [] };

class Page {
  constructor() {
    this.state = readAddress();
    document.body.append(of("viewer"), of("dropping")); // above everything, whichever tab is shown
    this.viewer = new Viewer(this);
    this.concepts = new Concepts(this);
    this.marks = new Marks(this);
    this.results = new Results(this);
    this.comparison = new Comparison(this);
    this.boards = new Boards(this);
    this.connect();
  }

  async begin() {
    history.scrollRestoration = "manual";
    this.concepts.read();
    await this.listIndexes().catch((error) => this.results.fail(error.message));
    this.show();
  }

  /** Go to a state that differs from this one; `inPlace` without a new step of the history. */
  go(change, inPlace = false) {
    this.state = { ...this.state, ...change };
    for (const [name, value] of Object.entries(change)) if (value === undefined) delete this.state[name];
    writeAddress(this.state, inPlace);
    this.show();
  }

  /** Note in the address what is shown already. */
  note(change, inPlace = true) {
    this.state = { ...this.state, ...change };
    for (const [name, value] of Object.entries(change)) if (value === undefined) delete this.state[name];
    writeAddress(this.state, inPlace);
  }

  /** Search for something else: words, an image of the index, a part of it, an upload. */
  searchFor(what) {
    const tab = this.tab === "compare" && what.q ? "compare" : "search";
    this.go({ ...NOTHING_ASKED, k: undefined, ...what, tab });
    if (tab === "search") window.scrollTo(0, 0);
  }

  get tab() {
    return this.state.tab || "search";
  }

  /** What is searched with, for a route. */
  get asked() {
    const { index, q, like, part, upload, where, marks, all, any, none } = this.state;
    const marked = { index, where, ...unmarked() };
    for (const mark of marks) {
      const [name, value] = parameterOf(mark);
      marked[name].push(value);
    }
    if (like) return { ...marked, like, part };
    return upload ? { ...marked, upload } : { ...marked, q, all, any, none };
  }

  show() {
    document.body.dataset.tab = this.tab;
    for (const link of of("tabs").children) {
      link.href = addressOf({ ...this.state, open: undefined, tab: link.dataset.tab });
      if (link.dataset.tab === this.tab) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    of("index").value = this.state.index || this.default || "";
    tell("current", of("index").value);
    tell("opened", this.tab);
    this.showAsked();
    if (this.tab === "search") this.results.show();
    else this.viewer.close();
    if (this.tab === "compare") this.comparison.show();
    if (this.tab === "leaderboard") this.boards.show();
  }

  /** The text box says what is shown: words, or none and the image. */
  showAsked() {
    const { q, like, part, upload, index } = this.state;
    of("query").value = like || upload ? "" : q || "";
    of("asked").hidden = !(like || upload);
    of("query").placeholder = like || upload ? "or name a thing" : "What are you looking for?";
    const picture = of("asked").querySelector("img");
    if (like) {
      const query = new URLSearchParams({ ...(index ? { index } : {}), id: like });
      picture.src = `for/picture?${query}`;
      picture.hidden = false;
      this.nameAsked(part === undefined ? "like this" : "like a part of this");
    } else if (upload) {
      picture.hidden = !this.preview || this.preview.upload !== upload;
      if (!picture.hidden) picture.src = this.preview.url;
      this.nameAsked(upload.split("/").pop());
    }
  }

  nameAsked(words) {
    of("asked").querySelector("span").textContent = words;
  }

  async listIndexes(chosen) {
    const { names, default: first } = await askJson("indexes", {});
    this.default = first;
    of("index").replaceChildren(...names.map((name) => new Option(name, name)));
    of("index").value = chosen || this.state.index || first;
    if (chosen) this.changeIndex(chosen, this.tab);
  }

  changeIndex(index, tab = this.tab) {
    const change = { index, tab, k: undefined, least: undefined, where: undefined, open: undefined, method: [], marks: [], show: undefined };
    if (this.state.like) Object.assign(change, { like: undefined, part: undefined });
    this.go(change);
  }

  async searchWithFile(file) {
    if (!file) return;
    this.searching = file;
    this.results.wait(`Sending ${file.name || "the image"} …`);
    if (this.preview) URL.revokeObjectURL(this.preview.url);
    this.preview = undefined;
    try {
      const upload = await uploadImage(file);
      if (this.searching !== file) return;
      this.preview = { upload, url: URL.createObjectURL(file) };
      this.searchFor({ upload });
    } catch (error) {
      if (this.searching !== file) return;
      this.note({ ...NOTHING_ASKED, tab: "search" }, false);
      document.body.dataset.tab = "search";
      this.showAsked();
      this.results.fail(error.message);
    }
  }

  connect() {
    of("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const q = of("query").value.trim();
      if (q) this.searchFor({ q });
      else of("query").focus();
      if (q && matchMedia("(pointer: coarse)").matches) of("query").blur(); // the keyboard would hide what is found
    });
    of("forget").addEventListener("click", () => {
      of("asked").hidden = true;
      of("query").focus();
    });
    of("query").addEventListener("blur", () => {
      if (!of("query").value) this.showAsked();
    });
    of("index").addEventListener("change", () => this.changeIndex(of("index").value));
    of("tabs").addEventListener("click", (event) => this.followTab(event));
    of("comparison").addEventListener("click", (event) => this.followTab(event));
    of("tune").addEventListener("click", () => {
      const open = of("panel").hidden;
      of("panel").hidden = !open;
      of("tune").setAttribute("aria-expanded", open);
    });
    of("camera").addEventListener("click", () => of("file").click());
    of("file").addEventListener("change", () => {
      this.searchWithFile(of("file").files[0]);
      of("file").value = "";
    });
    addEventListener("popstate", () => {
      this.state = readAddress();
      this.show();
    });
    this.connectDrops();
  }

  followTab(event) {
    const link = event.target.closest("a[data-tab]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.go({ tab: link.dataset.tab, open: undefined });
    window.scrollTo(0, 0);
  }

  /** Have an image labelled, on the Pseudo-labels tab. */
  async labelFile(file) {
    if (!file) return;
    of("label-said").textContent = `Sending ${file.name || "the image"} …`;
    try {
      tell("label-upload", await uploadImage(file));
      of("label-said").textContent = "";
    } catch (error) {
      of("label-said").textContent = error.message;
    }
  }

  take(file) {
    if (this.tab === "labels") this.labelFile(file);
    else this.searchWithFile(file);
  }

  /** An image may be dropped or pasted anywhere. */
  connectDrops() {
    const hasFile = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
    const showing = (shown) => { of("dropping").hidden = !shown; };
    addEventListener("dragover", (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      showing(true);
    });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) showing(false); });
    addEventListener("drop", (event) => {
      if (!hasFile(event)) return;
      event.preventDefault();
      showing(false);
      this.take(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
      if (!file) return;
      event.preventDefault();
      this.take(file);
    });
    of("label-choose").addEventListener("click", () => of("label-file").click());
    of("label-file").addEventListener("change", () => {
      this.labelFile(of("label-file").files[0]);
      of("label-file").value = "";
    });
  }
}

// Gradio puts the page's elements into the document some time after it has loaded.
const ready = () => ["bar", "grid", "viewer", "comparison", "boards", "label-drop"].every(of) && document.querySelector("#current :is(textarea, input)");
function start() {
  if (!ready()) return false;
  window.FOR = new Page();
  window.FOR.begin();
  return true;
}
if (!start()) {
  const watcher = new MutationObserver(() => { if (start()) watcher.disconnect(); });
  watcher.observe(document.documentElement, { childList: true, subtree: true });
}
