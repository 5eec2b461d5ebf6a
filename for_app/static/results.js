// The Search tab: hits as rows of pictures of one height, more of them as one scrolls, a line where matches end.

import { unmarked } from "./address.js";
import { badgeOf } from "./marks.js";
import { askJson, routeTo } from "./server.js";

const of = (id) => document.getElementById(id);
const STEP = 24; // hits asked for at a time
const MOST = 240; // that the server gives at a time
const NEAR_PX = 100; // more is asked for when the end is as near as that
const SLOW_MS = 1200;
const MOVE_MS = 250; // that a picture takes to its new place
const ROLES = ["all", "any", "none"];

const percent = (share) => `${Math.round(100 * share)}%`;

/** How sure it is that a hit matches: its probability where that is known, that of each thing of several, else its score. */
export function sureness(hit) {
  if (hit.probability === undefined) return `score ${hit.score.toFixed(3)}`;
  const things = (hit.things || []).map((each) => `${each.text} ${percent(each.probability)}`);
  return `${percent(hit.probability)} likely${things.length ? ` (${things.join(", ")})` : ""}`;
}

export class Results {
  constructor(page) {
    this.page = page;
    this.hits = [];
    this.key = undefined; // what the hits are of
    of("more").addEventListener("click", () => this.more());
    of("grid").addEventListener("click", (event) => {
      const mark = event.target.closest(".mark");
      if (mark) return page.marks.give(mark.dataset.id, mark.dataset.kind);
      const shot = event.target.closest(".shot");
      if (shot) page.note({ open: String(this.hits[Number(shot.dataset.n)].id) }, false), this.openAsked();
    });
    of("grid").addEventListener("keydown", (event) => {
      const shot = event.target.closest(".shot");
      if (shot && this.canMark) page.marks.pressed(event, this.hits[Number(shot.dataset.n)].id);
    });
    new IntersectionObserver(() => this.fill(), { rootMargin: `${NEAR_PX}px` }).observe(of("rest"));
    this.connectLeast();
    this.connectWhere();
    this.connectSeveral();
  }

  /** Whether results can be marked: not those of several things at once, of which a mark wouldn't say which it means. */
  get canMark() {
    return !ROLES.some((role) => this.page.state[role].length);
  }

  get route() {
    return this.page.state.show === "everything" ? "everything" : "search";
  }

  /** Show what the page's state asks for: search, unless the hits that are shown are those already. */
  async show() {
    const { k, least } = this.page.state;
    const key = this.keyOf(this.page.asked);
    if (key === this.key && Number(k || STEP) <= this.hits.length) return this.openAsked();
    const plain = this.keyOf({ ...this.page.asked, ...unmarked() });
    const moves = plain === this.unmarked && this.hits.length > 0; // what is shown only moves to where marks put it
    Object.assign(this, { key, unmarked: plain });
    this.controller?.abort();
    const controller = (this.controller = new AbortController());
    if (moves) document.body.classList.add("searching");
    else this.wait();
    this.page.marks.draw(moves ? undefined : null);
    this.showFilters();
    const slow = setTimeout(() => this.sayWhySlow(controller.signal), SLOW_MS);
    try {
      const wanted = Math.max(STEP, Number(k) || STEP);
      const first = await this.ask(0, Math.min(wanted, MOST), controller.signal);
      const hits = first.hits;
      while (hits.length < Math.min(wanted, first.total)) {
        const { hits: next } = await this.ask(hits.length, Math.min(wanted - hits.length, MOST), controller.signal);
        if (!next.length) break;
        hits.push(...next);
      }
      Object.assign(this, { hits, total: first.total, low: first.low, high: first.high, label: first.label, cutoff: first.cutoff });
      const { q, like, upload } = this.page.state;
      if (!q && !like && !upload) {
        this.page.note({ q: first.label });
        this.page.showAsked();
        this.key = this.keyOf(this.page.asked);
        this.unmarked = this.keyOf({ ...this.page.asked, ...unmarked() });
      } else if (this.page.state.like) this.page.nameAsked(first.label);
      if (first.examples) this.showChips(first.examples);
      if (first.details) of("technical").querySelector("div").innerHTML = first.details;
      of("technical").hidden = !first.details;
      if (moves) this.move(first.marks);
      else {
        this.page.marks.draw(first.marks);
        this.draw();
      }
      this.openAsked();
      if (moves) return;
      if (history.state?.scroll !== undefined && !this.page.state.open) window.scrollTo(0, history.state.scroll);
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error.message);
    } finally {
      clearTimeout(slow);
      if (this.controller === controller) {
        this.rest();
        requestAnimationFrame(() => this.fill());
      }
    }
  }

  /** What hits are told apart by. */
  keyOf(asked) {
    const { least, show } = this.page.state;
    return JSON.stringify([asked, least, show]);
  }

  /** Draw the hits in the place of others of the same search: each picture goes to where it belongs now, and neither
   * the page nor what has the focus leaves its place. */
  move(marks) {
    const grid = of("grid");
    const place = (item) => item.getBoundingClientRect();
    const top = place(grid).top;
    const before = new Map([...grid.children].map((item) => [item.dataset.id, place(item)]));
    const focused = document.activeElement.closest?.("#grid .shot")?.dataset.n;
    this.page.marks.draw(marks);
    this.draw();
    if (scrollY > 0) scrollBy(0, place(grid).top - top);
    if (focused !== undefined) grid.querySelector(`[data-n="${Math.min(focused, this.hits.length - 1)}"]`)?.focus({ preventScroll: true });
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    for (const item of grid.children) {
      const [from, to] = [before.get(item.dataset.id), place(item)];
      if (!item.dataset.id || to.bottom < 0 || to.top > innerHeight) continue;
      const start = from ? { transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` } : { opacity: 0 };
      item.animate([start, {}], { duration: MOVE_MS, easing: "ease-out" });
    }
  }

  ask(from, n, signal) {
    return askJson(this.route, { ...this.page.asked, from, n, least: this.page.state.least }, signal);
  }

  /** Ask for the next hits. Returns whether there were any. */
  async more() {
    if (this.ended || this.growing || of("grid").classList.contains("old")) return false;
    const key = this.key;
    this.growing = true;
    try {
      const { hits } = await this.ask(this.hits.length, STEP, this.controller.signal);
      if (key !== this.key) return false;
      this.hits.push(...hits);
      this.page.note({ k: String(this.hits.length) });
      this.draw(this.hits.length - hits.length);
      return hits.length > 0;
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message, true);
      return false;
    } finally {
      this.growing = false;
    }
  }

  /** Ask for more hits while the end of those that are shown can be seen, as long as they match. */
  async fill() {
    const atEnd = of("rest").offsetParent && of("rest").getBoundingClientRect().top < innerHeight + NEAR_PX;
    if (atEnd && !this.below && (await this.more())) requestAnimationFrame(() => this.fill());
  }

  get ended() {
    return this.hits.length >= (this.total ?? 0);
  }

  /** The lowest score that counts as a match; undefined for none. */
  get least() {
    return this.page.state.least === undefined ? undefined : Number(this.page.state.least);
  }

  /** Whether a hit is no match: it scores less than the visitor wants, or is less probable than a good match. */
  isLow(hit) {
    if (this.least !== undefined) return hit.score < this.least;
    return this.cutoff !== undefined && hit.probability < this.cutoff;
  }

  /** Whether the last hit that is shown is no match. */
  get below() {
    return this.hits.length > 0 && this.isLow(this.hits.at(-1));
  }

  /** Draw the hits, from one on. */
  draw(from = 0) {
    const grid = of("grid");
    if (from === 0) {
      this.pictures = new Map([...grid.querySelectorAll("li[data-id] img")].map((each) => [each.src, each]));
      grid.replaceChildren();
    }
    for (const [n, hit] of this.hits.entries()) {
      if (n < from) continue;
      const low = this.isLow(hit);
      if (low && !grid.querySelector(".line")) grid.append(...this.line(n));
      grid.append(this.item(n, hit, low));
    }
    this.pictures = undefined;
    of("more").hidden = this.ended;
    of("more").textContent = this.below ? "Show more that match less" : "Show more";
    this.sayFound();
    this.showLeast();
  }

  item(n, hit, low) {
    const item = document.createElement("li");
    item.dataset.id = hit.id;
    item.style.setProperty("--ratio", Math.min(3, Math.max(0.5, hit.ratio)));
    if (low) item.className = "low";
    const shot = document.createElement("button");
    shot.type = "button";
    shot.className = "shot";
    shot.dataset.n = n;
    const source = new URL(routeTo("picture", { index: this.page.state.index, id: hit.id }), document.baseURI).href;
    const picture = this.pictures?.get(source) || document.createElement("img"); // one that has come needn't come again
    picture.loading = "lazy";
    picture.decoding = "async";
    picture.alt = `${hit.name}, rank ${hit.rank} of ${this.total}${hit.problem ? `, ${hit.problem}` : ""}`;
    if (picture.src !== source) picture.src = source;
    const name = document.createElement("span");
    name.ariaHidden = "true";
    name.textContent = `${hit.rank} · ${hit.problem || hit.name} · ${sureness(hit)}`;
    shot.append(picture, name);
    item.append(shot);
    if (this.canMark) {
      item.append(this.page.marks.buttons(hit));
      shot.setAttribute("aria-keyshortcuts", "R W U");
    }
    const kind = this.page.marks.kindOf(hit.id);
    if (kind) {
      const badge = document.createElement("i");
      badge.textContent = badgeOf(kind);
      shot.append(badge);
      picture.alt += `, marked ${kind}`;
    }
    return item;
  }

  /** What parts the hits that match from those that don't: the end of a row, and a line. */
  line(n) {
    const gap = document.createElement("li");
    gap.className = "gap";
    gap.ariaHidden = "true";
    const line = document.createElement("li");
    line.className = "line";
    if (this.least === undefined) {
      line.textContent = n === 0 ? "None of these is probably a match; they come nearest." : "Below this line: less likely to match";
      return [gap, line];
    }
    const least = this.least.toFixed(3);
    line.textContent = n === 0
      ? `No image scores ${least} or more: the best has ${this.hits[0].score.toFixed(3)}. These come nearest.`
      : `Below this line: less than ${least}`;
    return [gap, line];
  }

  sayFound() {
    const total = this.total.toLocaleString("en");
    const above = this.hits.findIndex((hit) => this.isLow(hit)); // -1: there may be more of them
    const problems = this.hits.filter((hit) => hit.problem).length;
    let words = this.ended ? `All ${total} images, best first` : `The best ${this.hits.length} of ${total} images`;
    if (this.page.state.where) words += " that meet the condition";
    if (!this.total) words = "No image meets the condition";
    if (this.least !== undefined) {
      if (above === 0) words = "No image reaches the lowest score";
      else if (above > 0) words = `${above.toLocaleString("en")} of ${total} images reach the lowest score`;
    } else if (above === 0) words = `No good match among ${total} images`;
    else if (above > 0) words = `${above.toLocaleString("en")} good ${above === 1 ? "match" : "matches"} among ${total} images`;
    if (problems) words += `; ${problems} can't be shown`;
    const status = of("status");
    status.className = "";
    const label = document.createElement("b");
    label.textContent = this.label;
    if (this.page.state.show === "everything") words = "all that are meant, the surest first";
    status.replaceChildren(label, ` · ${words}`);
  }

  say(words, isError = false) {
    of("status").className = isError ? "error" : "";
    of("status").textContent = words;
  }

  wait(words = "Searching …") {
    document.body.classList.add("searching");
    of("grid").classList.add("old");
    of("grid").ariaBusy = "true";
    this.say(words);
  }

  rest() {
    document.body.classList.remove("searching");
    of("grid").classList.remove("old");
    of("grid").ariaBusy = "false";
  }

  /** Say what went wrong, and leave nothing of what was shown before. */
  fail(words) {
    Object.assign(this, { hits: [], total: 0, key: undefined });
    of("grid").replaceChildren();
    of("more").hidden = of("technical").hidden = true;
    this.page.marks.draw(null); // the marks stay, and can be taken back
    this.rest();
    this.say(words, true);
  }

  async sayWhySlow(signal) {
    const { why } = await askJson("waiting", this.page.asked, signal).catch(() => ({}));
    if (why && !signal.aborted && of("grid").classList.contains("old")) this.say(why);
  }

  showChips(examples = this.examples) {
    this.examples = examples;
    of("chips").replaceChildren(...this.page.concepts.chips(), ...(examples || []).map((example) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.textContent = example;
      chip.addEventListener("click", () => this.page.searchFor({ q: example }));
      return chip;
    }));
  }

  /** Open the hit that the address names, if it is among those shown; close the viewer where it names none. */
  openAsked() {
    const { open, index } = this.page.state;
    const viewer = this.page.viewer;
    if (open === undefined) return viewer.close();
    const n = this.hits.findIndex((hit) => String(hit.id) === open);
    if (n < 0) return viewer.close();
    viewer.open({
      n,
      hits: this.hits,
      total: this.total,
      index,
      asked: this.page.asked,
      more: () => this.more(),
      moved: (hit) => this.page.note({ open: String(hit.id) }),
      closed: () => this.page.note({ open: undefined }),
      marks: this.canMark ? this.page.state.marks : undefined,
      marked: (marks) => this.page.marks.set(marks),
      thumbnail: (at) => of("grid").querySelector(`[data-n="${at}"]`),
    });
  }

  connectLeast() {
    const [range, number] = of("least").querySelectorAll("input");
    const clamped = (value) => Math.min(this.high, Math.max(this.low, value));
    const set = (value) => {
      if (this.hits.length && Number.isFinite(value)) this.page.go({ least: clamped(value).toFixed(3) }, true);
      else this.showLeast();
    };
    range.addEventListener("input", () => { number.value = range.value; });
    range.addEventListener("change", () => set(range.valueAsNumber));
    number.addEventListener("change", () => set(number.valueAsNumber));
    of("least").querySelector("button").addEventListener("click", () => this.page.go({ least: undefined }, true));
  }

  showLeast() {
    const [range, number] = of("least").querySelectorAll("input");
    for (const input of [range, number]) {
      input.min = this.low;
      input.max = this.high;
      input.value = this.least ?? this.low;
    }
    of("least").querySelector("button").disabled = this.least === undefined;
    this.showFilters();
  }

  connectWhere() {
    const [input, button] = of("where").querySelectorAll("input, button");
    const set = (where) => {
      if (where !== (this.page.state.where || "")) this.page.go({ where: where || undefined, k: undefined, open: undefined });
    };
    input.addEventListener("change", () => set(input.value.trim()));
    button.addEventListener("click", () => set(""));
  }

  connectSeveral() {
    const [form, clear] = [of("several"), of("several").querySelector("button")];
    const listed = (role) => form.querySelector(`[name="${role}"]`).value.split(",").map((each) => each.trim()).filter(Boolean);
    const set = (lists) => {
      const same = ROLES.every((role) => JSON.stringify(lists[role]) === JSON.stringify(this.page.state[role]));
      if (!same) this.page.go({ ...lists, k: undefined, least: undefined, open: undefined, show: undefined });
    };
    form.addEventListener("change", () => set(Object.fromEntries(ROLES.map((role) => [role, listed(role)]))));
    clear.addEventListener("click", () => set(Object.fromEntries(ROLES.map((role) => [role, []]))));
  }

  /** The panel says which filters hold, and its button that some do. */
  showFilters() {
    const where = this.page.state.where || "";
    const [input, button] = of("where").querySelectorAll("input, button");
    input.value = where;
    button.disabled = !where;
    for (const role of ROLES) of("several").querySelector(`[name="${role}"]`).value = this.page.state[role].join(", ");
    of("several").querySelector("button").disabled = this.canMark;
    of("tune").querySelector("i").hidden = this.least === undefined && !where && this.canMark;
  }
}
