"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const bar = $("bar"), list = $("prompts"), nothing = $("nothing"), help = $("help"), filters = $("filters");
  const search = $("search"), sign = $("sign"), model = $("model"), kind = $("kind"), changed = $("changed");
  const columns = [...document.querySelectorAll("[data-column]")];
  const counts = [];
  const prompts = [...list.querySelectorAll("article")].map((element, place) => ({
    element, place, kind: element.dataset.kind, change: Number(element.dataset.change),
    // Only what was written, not what the page says about it.
    texts: [...element.querySelectorAll(".text")],
    sides: [...element.querySelectorAll("[data-signs]")].map((side) => ({
      element: side, model: side.dataset.model, signs: side.dataset.signs.split(" ").filter(Boolean),
    })),
  }));
  let shown = prompts, current = null, jumpedTo = null, hashTimer = 0, searchTimer = 0, waiting = false;

  const wanted = () => search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const contains = (prompt, needles) => {
    if (needles.length) prompt.words ??= prompt.texts.map((text) => text.textContent).join("\n").toLowerCase();
    return needles.every((needle) => prompt.words.includes(needle));
  };
  const shows = (side) => (!model.value || side.model === model.value)
    && (sign.value === "*" ? side.signs.length > 0 : side.signs.includes(sign.value));

  function apply(target) {
    const needles = wanted();
    shown = prompts.filter((p) => (!kind.value || p.kind === kind.value) && (!sign.value || p.sides.some(shows))
      && contains(p, needles));
    for (const p of prompts) p.element.hidden = !shown.includes(p);
    nothing.hidden = shown.length > 0;
    for (const button of counts) {
      const { model: ofModel, sign: ofSign } = button.parentElement.dataset;
      button.setAttribute("aria-pressed", String(model.value === ofModel && sign.value === ofSign));
    }
    const active = [
      sign.value && sign.selectedOptions[0].text, model.value && "of " + model.selectedOptions[0].text,
      kind.value && kind.selectedOptions[0].text, needles.length && "“" + search.value.trim() + "”",
    ].filter(Boolean).join(", ");
    $("active").textContent = active && "(" + active + ")";
    $("shown").textContent = shown.length + " of " + prompts.length + " prompts shown";
    highlight(needles);
    if (target === "stay") return follow();
    const kept = target !== "first" && current && prompts.slice(prompts.indexOf(current)).find((p) => shown.includes(p));
    go(kept || shown[0], !list.contains(document.activeElement));
  }

  function highlight(needles) {
    if (!window.CSS?.highlights) return;
    CSS.highlights.delete("found");
    if (!needles.length) return;
    const pattern = new RegExp(needles.map((needle) => needle.replace(/[^\p{L}\p{N}\s]/gu, "\\$&")).join("|"), "gi");
    const ranges = [];
    for (const text of shown.flatMap((p) => p.texts)) {
      const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
      while (walker.nextNode() && ranges.length < 5000) for (const found of walker.currentNode.data.matchAll(pattern)) {
        const range = new Range();
        range.setStart(walker.currentNode, found.index);
        range.setEnd(walker.currentNode, found.index + found[0].length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  }

  function mark(prompt) {
    current?.element.removeAttribute("aria-current");
    prompt?.element.setAttribute("aria-current", "true");
    current = prompt;
    const at = shown.indexOf(prompt), few = shown.length < prompts.length;
    $("position").textContent = (at >= 0 ? at + 1 + " of " : "") + shown.length + (at < 0 ? " prompts" : few ? " shown" : "");
    $("previous").disabled = at <= 0;
    $("next").disabled = at >= shown.length - 1;
    clearTimeout(hashTimer);
    hashTimer = setTimeout(() => {
      const hash = current ? "#" + current.element.id : "";
      try {
        if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname + location.search);
      } catch {
        // A page inside another may not change its address.
      }
    }, 150);
  }

  function go(prompt, quietly) {
    mark(prompt ?? null);
    if (!prompt) return nothing.scrollIntoView({ block: "center" });
    prompt.element.scrollIntoView({ block: "start" });
    jumpedTo = Math.round(scrollY);
    if (!quietly) prompt.element.querySelector("h2").focus({ preventScroll: true });
  }

  const step = (by) => {
    const next = shown[shown.indexOf(current) + by];
    if (next) go(next);
  };

  // The current prompt is the last one that has reached the bar.
  function follow() {
    const line = bar.offsetHeight + 24;
    const end = scrollY > 0 && Math.ceil(scrollY + innerHeight) >= document.documentElement.scrollHeight;
    mark(end ? shown.at(-1) ?? null : shown.findLast((p) => p.element.getBoundingClientRect().top <= line) ?? null);
  }

  function clear() {
    search.value = sign.value = model.value = kind.value = "";
    for (const box of columns) box.checked = true;
    showColumns();
    if (changed?.checked) {
      changed.checked = false;
      arrange();
    }
    apply(current ? "" : "stay");
  }

  function arrange() {
    prompts.sort((a, b) => (changed.checked && b.change - a.change) || a.place - b.place);
    list.append(...prompts.map((p) => p.element));
  }

  function showColumns() {
    const off = columns.filter((box) => !box.checked).map((box) => box.dataset.column);
    for (const p of prompts) for (const side of p.sides) side.element.hidden = off.includes(side.model);
  }

  function fromHash() {
    const prompt = prompts.find((p) => "#" + p.element.id === location.hash);
    if (!prompt) return false;
    mark(prompt);
    if (prompt.element.hidden) clear();
    else go(prompt);
    return true;
  }

  function filterBy(ofSign, ofModel, target) {
    [sign.value, model.value] = [ofSign, ofModel];
    apply(target);
  }

  for (const cell of document.querySelectorAll("[data-count]")) {
    if (cell.textContent.trim() === "0") continue;
    const button = document.createElement("button");
    const row = cell.parentElement.querySelector("th bdi").textContent;
    const column = cell.closest("table").rows[0].cells[cell.cellIndex].textContent.trim();
    button.type = "button";
    button.textContent = cell.textContent;
    button.setAttribute("aria-label", cell.textContent + ", show " + row + ": " + column);
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-pressed") === "true") filterBy("", "", "stay");
      else filterBy(cell.dataset.sign, cell.dataset.model, "first");
    });
    cell.replaceChildren(button);
    counts.push(button);
  }

  sign.addEventListener("change", () => {
    if (!sign.value) model.value = "";
    apply();
  });
  model.addEventListener("change", () => {
    // A model alone means: what is flagged of it.
    if (model.value) sign.value ||= "*";
    apply();
  });
  kind.addEventListener("change", () => apply());
  changed?.addEventListener("change", () => {
    arrange();
    apply("first");
  });
  for (const box of columns) box.addEventListener("change", () => {
    // One column stays.
    if (!columns.some((other) => other.checked)) box.checked = true;
    showColumns();
    if (current) go(current, true);
  });
  search.addEventListener("input", () => {
    clearTimeout(searchTimer);
    searchTimer = setTimeout(() => apply(wanted().length ? "first" : ""), 150);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    clearTimeout(searchTimer);
    search.blur();
    apply("first");
    if (shown[0]) go(shown[0]);
  });
  for (const [id, action] of Object.entries({
    previous: () => step(-1), next: () => step(1), clear, all: clear, ask: () => help.showModal(), close: () => help.close(),
  })) $(id).addEventListener("click", action);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const escape = event.key === "Escape";
    if (!escape && event.target.matches("select, input:not([type=checkbox])")) return;
    // A table that is wider than the screen is moved with the arrows.
    if (event.key.startsWith("Arrow") && event.target.closest(".scroll")) return;
    const action = new Map([
      ["j", () => step(1)], ["ArrowRight", () => step(1)], ["k", () => step(-1)], ["ArrowLeft", () => step(-1)],
      ["/", () => search.select()], ["f", () => filterBy(sign.value ? "" : "*", "")], ["?", () => help.showModal()],
      ["Escape", clear],
    ]).get(event.key);
    if (!action) return;
    if (escape) {
      clearTimeout(searchTimer);
      search.blur();
    }
    event.preventDefault();
    action();
  });
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      // Where the page jumped to a prompt, that one is current.
      if (jumpedTo !== null && Math.abs(scrollY - jumpedTo) < 2) return;
      jumpedTo = null;
      follow();
    });
  }, { passive: true });
  addEventListener("hashchange", fromHash);
  const measure = () => document.documentElement.style.setProperty("--bar", bar.getBoundingClientRect().height + "px");
  new ResizeObserver(measure).observe(bar);
  bar.hidden = false;
  filters.open = matchMedia("(min-width: 56rem) and (min-height: 42rem)").matches;
  measure();
  if (!fromHash()) follow();
})();
