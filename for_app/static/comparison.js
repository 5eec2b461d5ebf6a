// The Compare tab: the same words through several methods; a hit opens as in the Search tab.

import { askHtml } from "./server.js";

const of = (id) => document.getElementById(id);

export class Comparison {
  constructor(page) {
    this.page = page;
    const place = of("comparison");
    place.addEventListener("change", (event) => {
      const form = event.target.closest("form");
      if (!form) return;
      const boxes = [...form.elements].filter((each) => each.name === "method");
      const method = boxes.filter((each) => each.checked).map((each) => each.value);
      if (!method.length) event.target.checked = true; // one is left
      else page.go({ method: method.length === boxes.length ? [] : method }, true);
    });
    place.addEventListener("click", (event) => {
      const shot = event.target.closest(".shot");
      if (shot) this.open(shot);
    });
  }

  async show() {
    const { q, n, method, index } = this.page.state;
    const key = JSON.stringify([index, q, n, method]);
    if (key === this.key) return;
    this.key = key;
    this.controller?.abort();
    const { signal } = (this.controller = new AbortController());
    const place = of("comparison");
    if (!q) {
      this.key = undefined;
      place.textContent = "Methods are compared on words: type some above.";
      return;
    }
    if (!place.firstElementChild) place.textContent = "Asking every method: one that is opened for the first time takes a while …";
    place.classList.add("old");
    document.body.classList.add("searching");
    try {
      place.innerHTML = await askHtml("compare", { index, q, n, method }, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.key = undefined;
      const said = document.createElement("p");
      said.className = "error";
      said.textContent = error.message;
      place.replaceChildren(said);
    }
    place.classList.remove("old");
    document.body.classList.remove("searching");
  }

  open(shot) {
    const section = shot.closest("section");
    const shots = [...section.querySelectorAll(".shot")];
    const { index } = section.dataset;
    this.page.viewer.open({
      n: shots.indexOf(shot),
      hits: shots.map((each) => JSON.parse(each.dataset.hit)),
      index,
      asked: { index, q: this.page.state.q },
      thumbnail: (at) => shots[at],
    });
  }
}
