// The places of an opened picture, each of which belongs to one of its parts: chosen by a click or by keys, to be marked.

import { askJson } from "./server.js";

const of = (id) => document.getElementById(id);
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Places {
  /** viewer: whose picture it is; its `showMarks` is called when another part is chosen. */
  constructor(viewer) {
    this.viewer = viewer;
    of("choose-part").addEventListener("click", () => this.toggle());
    of("viewer-image").parentElement.addEventListener("click", (event) => {
      if (this.viewer.marks && !event.target.closest("button")) this.choose(event.clientX, event.clientY);
    });
    of("viewer-image").addEventListener("load", () => this.fit());
    new ResizeObserver(() => this.fit()).observe(of("viewer-image")); // what is said beside it takes room as well
  }

  /** Another picture is shown: nothing is known of its parts yet. */
  forget() {
    this.parts = undefined;
    this.close();
  }

  close() {
    this.part = this.place = undefined;
    of("places").hidden = true;
    of("choose-part").setAttribute("aria-pressed", false);
    this.viewer.showMarks();
  }

  /** Choose the part that matched, to go on from there by keys; or none again. */
  async toggle() {
    if (this.part !== undefined) return this.close();
    if (!(await this.ask())) return;
    const cells = this.parts.cells[this.viewer.hit.part].flat();
    this.show(cells.indexOf(Math.max(...cells)), String(this.viewer.hit.part));
    of("places").focus();
  }

  /** Choose the part at a place of the window; no part where that is none of the picture. */
  async choose(x, y) {
    const box = this.box();
    const [left, top] = [(x - box.left) / box.width, (y - box.top) / box.height];
    if (!(left >= 0 && left < 1 && top >= 0 && top < 1) || !(await this.ask())) return;
    const side = this.parts.part.length;
    this.show(Math.floor(top * side) * side + Math.floor(left * side));
  }

  /** A key pressed in the viewer. Returns whether it was one for places. */
  pressed(event) {
    if (!this.viewer.marks || event.ctrlKey || event.metaKey || event.altKey) return false;
    if (event.key.toLowerCase() === "p") this.toggle();
    else if (STEPS[event.key] && document.activeElement === of("places") && this.parts) {
      const side = this.parts.part.length;
      const [right, down] = STEPS[event.key];
      const [x, y] = [(this.place % side) + right, Math.floor(this.place / side) + down];
      if (x >= 0 && x < side && y >= 0 && y < side) this.show(y * side + x);
    } else return false;
    event.preventDefault();
    return true;
  }

  /** Ask which place belongs to which part, once a picture. Returns whether it is known. */
  async ask() {
    if (this.parts) return true;
    const { list, hit, controller } = this.viewer;
    of("viewer-said").textContent = "Looking at the image again …";
    try {
      const parts = await askJson("parts", { index: list.index, id: hit.id }, controller.signal);
      of("viewer-said").textContent = parts.problem || "";
      if (parts.part) this.parts = parts;
    } catch (error) {
      if (error.name !== "AbortError") of("viewer-said").textContent = error.message;
    }
    return Boolean(this.parts);
  }

  /** Light up the part of a place; `part` where it isn't the one that the place belongs to. */
  show(place, part = String(this.parts.part.flat()[place])) {
    Object.assign(this, { place, part });
    const cells = this.parts.cells[Number(part)].flat();
    of("places").style.setProperty("--side", this.parts.part.length);
    of("places").replaceChildren(...cells.map((share, n) => {
      const cell = document.createElement("i");
      cell.style.setProperty("--share", share);
      if (n === place) cell.className = "here";
      return cell;
    }));
    of("places").hidden = false;
    of("viewer-heat").hidden = true;
    of("choose-part").setAttribute("aria-pressed", true);
    const count = this.parts.cells.length;
    of("viewer-said").textContent = count > 1
      ? `Part ${Number(part) + 1} of ${count}, lit up: mark it right or wrong, or choose another place.`
      : "This method keeps one embedding of the whole image, which is marked wherever you click.";
    this.fit();
    this.viewer.showMarks();
  }

  /** Where the picture lies in the window: it is as large as fits into its stage. */
  box() {
    const [picture, stage] = [of("viewer-image"), of("viewer-image").getBoundingClientRect()];
    const scale = Math.min(stage.width / picture.naturalWidth, stage.height / picture.naturalHeight);
    const [width, height] = [picture.naturalWidth * scale, picture.naturalHeight * scale];
    return { left: stage.left + (stage.width - width) / 2, top: stage.top + (stage.height - height) / 2, width, height };
  }

  /** Lay the places over the picture. */
  fit() {
    if (of("places").hidden || !of("viewer-image").naturalWidth) return;
    const [box, stage] = [this.box(), of("viewer-image").getBoundingClientRect()];
    const { style } = of("places");
    [style.left, style.top] = [`${box.left - stage.left}px`, `${box.top - stage.top}px`];
    [style.width, style.height] = [`${box.width}px`, `${box.height}px`];
  }
}
