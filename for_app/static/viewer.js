// A result opened over the grid: its picture, what matched, what is known of its file, and what to look for from there.

import { KINDS } from "./address.js";
import { KEYS } from "./marks.js";
import { Places } from "./places.js";
import { sureness } from "./results.js";
import { askJson, routeTo } from "./server.js";

const of = (id) => document.getElementById(id);
const SWIPE_PX = 50;
const WORDS = { right: "✓ Right", wrong: "✗ Wrong" };
const PART_WORDS = { right: "✓ Right part", wrong: "✗ Wrong part" };

export class Viewer {
  constructor(page) {
    this.page = page;
    this.heat = false;
    this.dialog = of("viewer");
    this.places = new Places(this);
    this.connect();
  }

  /** Open one of some hits.
   *
   * list: {n, hits, total, index, asked, thumbnail}: which, of what; where its thumbnail is; and functions that are
   * called when there shall be more hits (`more`), when another is shown (`moved`), when it is closed (`closed`).
   * marks: [kind, id] or [kind, id, part] of what is marked, if hits can be marked; `marked` is called on closing with
   * others. */
  open(list) {
    const isOpen = this.dialog.open;
    if (isOpen && this.list?.hits[this.list.n]?.id === list.hits[list.n].id) return;
    this.list = list;
    this.marks = list.marks && new Map(list.marks.map((mark) => [mark[1], mark]));
    if (!isOpen) this.dialog.showModal();
    this.show();
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  get hit() {
    return this.list.hits[this.list.n];
  }

  async step(by) {
    const { list } = this;
    const n = list.n + by;
    if (n < 0) return;
    if (n >= list.hits.length && !(await list.more?.())) return;
    if (list !== this.list || !list.hits[n]) return;
    list.n = n;
    list.moved?.(this.hit);
    this.show();
  }

  show() {
    const { hit, list } = this;
    const of_index = { index: list.index, id: hit.id };
    this.controller?.abort();
    this.controller = new AbortController();
    of("viewer-name").textContent = hit.name;
    of("viewer-rank").textContent = `rank ${hit.rank}${list.total ? ` of ${list.total.toLocaleString("en")}` : ""} · ${sureness(hit)}`;
    of("viewer-file").textContent = of("viewer-said").textContent = "";
    of("viewer-words").replaceChildren();
    of("viewer-words").parentElement.hidden = true;
    of("viewer-image").src = routeTo("picture", { ...of_index, size: "large" });
    of("viewer-image").alt = `${hit.name}, rank ${hit.rank}`;
    of("viewer-heat").hidden = of("viewer-things").hidden = true;
    of("viewer-heat").removeAttribute("src");
    of("original").hidden = of("copy").hidden = true;
    of("previous").disabled = list.n === 0;
    of("next").disabled = list.n + 1 >= list.hits.length && !(list.total > list.hits.length);
    if (document.activeElement?.disabled) this.dialog.focus(); // else keys would reach nothing
    this.describe(of_index, this.controller.signal);
    if (this.heat) this.showHeat();
    this.markHeat();
    this.places.forget();
    this.showMarks();
  }

  /** The buttons that mark the hit, or the part of it that is chosen. */
  showMarks() {
    const { part } = this.places;
    const [marked, , marked_part] = this.marks?.get(String(this.hit.id)) || [];
    for (const kind of KINDS) {
      of(kind).hidden = !this.marks;
      of(kind).setAttribute("aria-pressed", marked === kind && (part === undefined || part === marked_part));
      of(kind).textContent = (part === undefined ? WORDS : PART_WORDS)[kind];
    }
    of("choose-part").hidden = !this.marks;
  }

  /** Say that this hit, or the part of it that is chosen, is right or wrong, or take that back. What is learnt from it is
   * shown on closing. */
  mark(kind) {
    const id = String(this.hit.id);
    const { part } = this.places;
    const mark = part === undefined ? [kind, id] : [kind, id, part];
    const [known, , known_part] = this.marks.get(id) || [];
    const taken = known === kind && (part === undefined || part === known_part);
    this.marks.delete(id);
    if (!taken) this.marks.set(id, mark);
    this.showMarks();
    of("viewer-said").textContent = taken ? "" : "Close this to see what is found with your marks, or go on marking.";
  }

  async describe(of_index, signal) {
    try {
      const said = await askJson("hit", of_index, signal);
      of("viewer-file").textContent = said.problem || said.words.join(" · ");
      if (!said.path) return;
      this.path = said.path;
      of("original").href = routeTo("original", of_index);
      of("original").hidden = of("copy").hidden = false;
    } catch (error) {
      if (error.name !== "AbortError") of("viewer-file").textContent = error.message;
    }
  }

  markHeat() {
    of("heat").setAttribute("aria-pressed", this.heat);
    of("heat").textContent = this.heat ? "Hide what matched" : "Show what matched";
  }

  async showHeat() {
    const { signal } = this.controller;
    const { list, hit } = this;
    of("viewer-said").textContent = "Looking at the image again …";
    try {
      const said = await askJson("evidence", { ...list.asked, index: list.index, id: hit.id }, signal);
      of("viewer-said").textContent = said.heat ? "" : said.words[0];
      of("viewer-words").replaceChildren(...said.words.map((words) => {
        const item = document.createElement("li");
        item.textContent = words;
        return item;
      }));
      of("viewer-words").parentElement.hidden = !said.heat;
      if (!said.heat || !this.heat) return;
      of("viewer-heat").src = said.heat;
      of("viewer-heat").alt = said.things ? `${hit.name}: each thing where it was found, in its colour` : `${hit.name}: what matched is bright`;
      of("viewer-heat").hidden = false;
      this.showThings(said.things);
    } catch (error) {
      if (error.name !== "AbortError") of("viewer-said").textContent = error.message;
    }
  }

  /** Which colour is which thing; nothing for one thing. */
  showThings(things = []) {
    of("viewer-things").hidden = !things.length;
    of("viewer-things").replaceChildren(...things.map(({ text, colour }) => {
      const item = document.createElement("li");
      const swatch = document.createElement("i");
      swatch.style.background = colour;
      swatch.ariaHidden = "true";
      item.append(swatch, text);
      return item;
    }));
  }

  leaveMarks() {
    this.list.closed?.();
    if (!this.marks) return;
    const marks = [...this.marks.values()];
    if (JSON.stringify(marks) !== JSON.stringify(this.list.marks)) this.list.marked(marks);
  }

  connect() {
    const { dialog } = this;
    of("close").addEventListener("click", () => this.close());
    of("previous").addEventListener("click", () => this.step(-1));
    of("next").addEventListener("click", () => this.step(1));
    of("heat").addEventListener("click", () => {
      this.heat = !this.heat;
      if (this.heat) this.places.close();
      this.markHeat();
      if (!this.heat) of("viewer-heat").hidden = of("viewer-things").hidden = true;
      else if (of("viewer-heat").src) {
        of("viewer-heat").hidden = false;
        of("viewer-things").hidden = !of("viewer-things").children.length;
      }
      else this.showHeat();
    });
    for (const kind of KINDS) of(kind).addEventListener("click", () => this.mark(kind));
    const leave = (change) => {
      const { hit, list } = this;
      this.left = true; // the page goes on elsewhere: nothing to go back to
      this.close();
      this.page.searchFor({ like: String(hit.id), index: list.index, ...change });
    };
    of("like-image").addEventListener("click", () => leave({}));
    of("like-part").addEventListener("click", () => leave({ part: String(this.hit.part) }));
    of("copy").addEventListener("click", async () => {
      await navigator.clipboard.writeText(this.path).then(
        () => { of("viewer-said").textContent = "The path is copied"; },
        () => { of("viewer-said").textContent = this.path; }, // it can be selected there
      );
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) this.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (this.places.pressed(event)) return;
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        event.preventDefault();
        this.step(event.key === "ArrowLeft" ? -1 : 1);
      }
      const kind = KEYS[event.key.toLowerCase()];
      if (kind && this.marks && !event.ctrlKey && !event.metaKey && !event.altKey) this.mark(kind);
    });
    dialog.addEventListener("close", () => {
      this.controller?.abort();
      const thumbnail = this.list.thumbnail?.(this.list.n);
      if (!this.left) this.leaveMarks();
      this.left = false;
      thumbnail?.focus({ preventScroll: true });
      thumbnail?.scrollIntoView({ block: "nearest" });
    });
    let from;
    dialog.addEventListener("touchstart", (event) => { from = event.touches.length === 1 ? event.touches[0] : undefined; }, { passive: true });
    dialog.addEventListener("touchend", (event) => {
      if (!from) return;
      const [x, y] = [event.changedTouches[0].clientX - from.clientX, event.changedTouches[0].clientY - from.clientY];
      if (Math.abs(x) > SWIPE_PX && Math.abs(x) > 2 * Math.abs(y)) this.step(x > 0 ? -1 : 1);
    }, { passive: true });
  }
}
