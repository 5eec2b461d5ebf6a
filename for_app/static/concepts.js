// Kept concepts: those that can be searched for, and keeping one.

import { askJson, postForm } from "./server.js";

const of = (id) => document.getElementById(id);
const PREFIX = "concept:";

export class Concepts {
  constructor(page) {
    this.page = page;
    this.names = [];
    of("keep").addEventListener("submit", (event) => {
      event.preventDefault();
      this.keep();
    });
    of("keep-cancel").addEventListener("click", () => this.close());
    of("keep-open").addEventListener("click", () => this.open());
  }

  /** Ask the server which there are. The page goes on without them where it can't tell. */
  async read() {
    const { concepts, keeps } = await askJson("concepts", {}).catch(() => ({ concepts: [], keeps: false }));
    Object.assign(this, { names: concepts.map((each) => each.name), keeps });
    this.page.results.showChips();
    this.page.marks.draw();
  }

  /** A button to search for each of them. */
  chips() {
    return this.names.map((name) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.className = "concept";
      chip.textContent = name;
      chip.title = `Search for the concept ${name}`;
      chip.addEventListener("click", () => this.page.searchFor({ q: PREFIX + name }));
      return chip;
    });
  }

  open() {
    of("keep").hidden = false;
    of("keep-said").textContent = "";
    const { q } = this.page.state;
    const name = of("keep-name");
    name.value = q?.startsWith(PREFIX) ? q.slice(PREFIX.length) : "";
    name.focus();
  }

  close() {
    of("keep").hidden = true;
    of("keep-open").focus();
  }

  async keep() {
    const name = of("keep-name").value.trim();
    if (!name) return of("keep-name").focus();
    try {
      const kept = await postForm("keep", { ...this.page.asked, name, replace: of("keep-replace").checked ? "1" : undefined });
      await this.read();
      this.close();
      this.page.results.say(`Kept as the concept ${kept.name}: ${kept.right} right, ${kept.wrong} wrong. Search for ${PREFIX}${kept.name}, or choose it above.`);
    } catch (error) {
      of("keep-said").textContent = error.message;
    }
  }
}
