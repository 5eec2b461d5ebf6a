// Marks on results: given by a click or a key, taken back, shown apart from what is found, and what can be done with them.

import { addressOf, KINDS } from "./address.js";
import { askJson, routeTo } from "./server.js";

const of = (id) => document.getElementById(id);
const LONGEST = 7000; // characters of an address, which servers and links still take
const SHOWN = 40; // of the marked images, the last
export const KEYS = { r: "right", w: "wrong" };
const SIGNS = { right: "✓", wrong: "✗" };

export class Marks {
  constructor(page) {
    this.page = page;
    this.said = null; // what the server says of them
    of("undo").addEventListener("click", () => this.undo());
    of("forget-marks").addEventListener("click", () => this.set([]));
    of("everything").addEventListener("click", () => this.toggleEverything());
    of("help-most").addEventListener("click", () => this.help(!this.helping));
    of("marked").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.set(this.page.state.marks.filter(([, id]) => id !== button.dataset.id));
    });
    of("telling").addEventListener("click", (event) => {
      const button = event.target.closest(".mark");
      if (button) this.give(button.dataset.id, button.dataset.kind);
    });
  }

  /** What an image is marked as; undefined for nothing. */
  kindOf(id) {
    return this.page.state.marks.find(([, each]) => each === String(id))?.[0];
  }

  /** Mark an image, or take the same mark back. What is found is then what the marks taught. */
  give(id, kind) {
    const others = this.page.state.marks.filter(([, each]) => each !== String(id));
    this.set(this.kindOf(id) === kind ? others : [...others, [kind, String(id)]]);
  }

  undo() {
    if (this.page.state.marks.length) this.set(this.page.state.marks.slice(0, -1));
  }

  set(marks) {
    if (addressOf({ ...this.page.state, marks }).length > LONGEST) {
      this.page.results.say("No more marks fit into the page's address: take some back, or keep what you have as a concept.", true);
      return;
    }
    this.page.go({ marks, ...(marks.length ? {} : { show: undefined }) }, true);
  }

  /** A key pressed on a result. Returns whether it was one of ours. */
  pressed(event, id) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const key = event.key.toLowerCase();
    if (key === "u") this.undo();
    else if (KEYS[key]) this.give(id, KEYS[key]);
    else return false;
    event.preventDefault();
    return true;
  }

  /** The two buttons that mark an image. */
  buttons(hit) {
    const pair = document.createElement("span");
    pair.className = "mark-pair";
    for (const [key, kind] of Object.entries(KEYS)) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "mark";
      button.tabIndex = -1; // the keys do it from the result itself
      button.dataset.id = hit.id;
      button.dataset.kind = kind;
      button.ariaPressed = this.kindOf(hit.id) === kind;
      button.title = `${kind === "right" ? "Right" : "Wrong"} (key ${key.toUpperCase()})`;
      button.ariaLabel = `${kind === "right" ? "Right" : "Wrong"}: ${hit.name}`;
      button.textContent = SIGNS[kind];
      pair.append(button);
    }
    return pair;
  }

  toggleEverything() {
    const show = this.page.state.show === "everything" ? undefined : "everything";
    this.page.go({ show, k: undefined, open: undefined });
  }

  /** Draw the bar: how many marks, what they mean, and the marked images.
   *
   * said: what the server says of what was learnt, null for nothing; undefined for what it said before. */
  draw(said) {
    if (said !== undefined) this.said = said;
    const { marks, show } = this.page.state;
    const { names, keeps } = this.page.concepts;
    of("marks").hidden = !marks.length && !this.said;
    if (of("marks").hidden) return this.help(false);
    const count = (kind) => this.said?.[kind] ?? marks.filter(([each]) => each === kind).length;
    const bold = document.createElement("b");
    bold.textContent = `${count("right")} right, ${count("wrong")} wrong`;
    const more = [this.said?.words, goneWords(this.said?.gone)].filter(Boolean);
    of("marks-said").replaceChildren(bold, more.length ? ` · ${more.join(" · ")}` : "");
    of("undo").hidden = of("forget-marks").hidden = !marks.length;
    of("everything").hidden = of("help-most").hidden = !this.said?.words;
    of("everything").textContent = show === "everything" ? "Back to the best" : "Show all";
    of("csv").hidden = show !== "everything";
    of("csv").href = routeTo("everything.csv", this.page.asked);
    of("keep-open").hidden = !keeps;
    const shown = marks.slice(-SHOWN).reverse();
    of("marked").hidden = !shown.length;
    of("marked").replaceChildren(...shown.map((mark) => this.markedItem(...mark)));
    this.tellMost();
  }

  markedItem(kind, id, part) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = id;
    button.className = kind;
    button.title = "Take this mark back";
    button.ariaLabel = `Marked ${kind}: ${part === undefined ? "" : "a part of "}image ${id}. Take this mark back`;
    const picture = document.createElement("img");
    picture.alt = "";
    picture.addEventListener("error", () => {
      picture.replaceWith("gone");
      button.title = "The image isn't there any more. Take its mark back";
      button.ariaLabel = `Marked ${kind}: image ${id}, which is gone. Take this mark back`;
    });
    picture.src = routeTo("picture", { index: this.page.state.index, id });
    const sign = document.createElement("i");
    sign.textContent = SIGNS[kind] + (part === undefined ? "" : "▪"); // a part of it
    sign.ariaHidden = "true";
    button.append(picture, sign);
    item.append(button);
    return item;
  }

  /** Ask, or stop asking, for the images whose marks would help most. */
  help(wanted) {
    this.helping = wanted;
    of("help-most").setAttribute("aria-expanded", wanted);
    of("helping").hidden = !wanted;
    if (wanted) this.tellMost();
  }

  async tellMost() {
    if (!this.helping || !this.said?.words) return;
    this.controller?.abort();
    const { signal } = (this.controller = new AbortController());
    try {
      const { hits } = await askJson("telling", this.page.asked, signal);
      of("telling").replaceChildren(...hits.map((hit) => this.tellingItem(hit)));
    } catch (error) {
      if (error.name !== "AbortError") of("telling").replaceChildren(error.message);
    }
  }

  tellingItem(hit) {
    const item = document.createElement("li");
    const picture = document.createElement("img");
    picture.alt = hit.name;
    picture.src = routeTo("picture", { index: this.page.state.index, id: hit.id });
    const pair = this.buttons(hit);
    for (const button of pair.children) button.tabIndex = 0; // there is no result to press keys on
    item.append(picture, pair);
    return item;
  }
}

const goneWords = (count) => (count ? `${count} marked image${count === 1 ? " is" : "s are"} gone` : "");

/** What a mark is called on a badge; empty for none. */
export const badgeOf = (kind) => (KINDS.includes(kind) ? `${SIGNS[kind]} ${kind}` : "");
