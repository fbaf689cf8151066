"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const list = $("prompts"), bar = $("bar");
  const search = $("search"), judge = $("judge"), pair = $("pair"), kind = $("kind"), sign = $("sign"), of = $("of");
  const low = $("low"), high = $("high"), margin = $("margin"), order = $("order");
  const numbers = (text) => text.split(",").map((part) => (part === "" ? null : Number(part)));
  const prompts = [...list.querySelectorAll("article")].map((element, place) => ({
    element, place, kind: element.dataset.kind, disagree: "disagree" in element.dataset,
    margins: numbers(element.dataset.margins),
    sides: [...element.querySelectorAll("[data-scores]")].map((side) => ({
      element: side, scores: numbers(side.dataset.scores), marks: side.dataset.marks.split(","),
      signs: side.dataset.signs.split(" ").filter(Boolean),
    })),
  }));
  let told = 0, searchTimer = 0;

  const at = () => Number(judge?.value ?? 0);
  const contains = (prompt, needles) => {
    // Only what was written, not what the page says about it.
    if (needles.length) prompt.words ??= [...prompt.element.querySelectorAll(".text")].map((t) => t.textContent).join("\n").toLowerCase();
    return needles.every((needle) => prompt.words.includes(needle));
  };

  // Scores and marks of the judge that is asked.
  function retell() {
    const now = at();
    if (now === told) return;
    told = now;
    for (const prompt of prompts) {
      const apart = prompt.margins[now], paired = prompt.sides.some((side) => side.marks[now]);
      prompt.element.querySelector(".margin").textContent = apart !== null ? "margin " + apart.toFixed(2) : paired ? "chosen" : "no pair";
      for (const side of prompt.sides) {
        const score = side.scores[now], badge = side.element.querySelector(".mark"), mark = side.marks[now];
        side.element.querySelector(".score").textContent = score === null ? "no score" : score.toFixed(2);
        side.element.className = "side " + mark;
        badge.className = "badge mark " + mark;
        badge.textContent = mark;
        badge.hidden = !mark;
      }
    }
  }

  function apply() {
    retell();
    const now = at(), needles = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const from = low.value === "" ? null : Number(low.value), to = high.value === "" ? null : Number(high.value);
    const least = margin.value === "" ? null : Number(margin.value);
    // One reply has to have all that is asked of a reply.
    const fits = (side) => (!of.value || side.marks[now] === of.value)
      && (!sign.value || (sign.value === "*" ? side.signs.length > 0 : side.signs.includes(sign.value)))
      && ((from === null && to === null)
        || (side.scores[now] !== null && side.scores[now] >= (from ?? 0) && side.scores[now] <= (to ?? 5)));
    const asked = of.value || sign.value || from !== null || to !== null;
    let n = 0;
    for (const prompt of prompts) {
      const paired = prompt.sides.some((side) => side.marks[now]);
      const shown = (!kind.value || prompt.kind === kind.value)
        && (!pair.value || { made: paired, none: !paired, disagree: prompt.disagree }[pair.value])
        && (least === null || (prompt.margins[now] !== null && prompt.margins[now] >= least))
        && (!asked || prompt.sides.some(fits)) && contains(prompt, needles);
      prompt.element.hidden = !shown;
      n += shown;
    }
    $("nothing").hidden = n > 0;
    $("shown").textContent = n === prompts.length ? n + (n === 1 ? " prompt" : " prompts") : n + " of " + prompts.length;
  }

  function arrange() {
    const now = at(), sense = { large: -1, small: 1 }[order.value];
    const by = (prompt) => prompt.margins[now] ?? Infinity * (sense ?? 1);
    const sorted = [...prompts].sort((a, b) => (sense && sense * (by(a) - by(b))) || a.place - b.place);
    list.append(...sorted.map((prompt) => prompt.element));
  }

  const filters = [judge, pair, kind, sign, of, low, high, margin, order].filter(Boolean);
  for (const filter of filters) filter.addEventListener("input", () => {
    if (filter === order || filter === judge) arrange();
    apply();
  });
  search.addEventListener("input", () => {
    clearTimeout(searchTimer);
    searchTimer = setTimeout(apply, 150);
  });
  $("clear").addEventListener("click", () => {
    search.value = "";
    for (const filter of filters) filter.value = filter === judge ? "0" : "";
    arrange();
    apply();
  });
  const measure = () => document.documentElement.style.setProperty("--bar", bar.getBoundingClientRect().height + "px");
  new ResizeObserver(measure).observe(bar);
  bar.hidden = false;
  $("filters").open = matchMedia("(min-width: 56rem) and (min-height: 42rem)").matches;
  measure();
  apply();
})();
