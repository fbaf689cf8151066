"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const bar = $("bar"), list = $("prompts"), nothing = $("nothing"), help = $("help"), filters = $("filters");
  const search = $("search"), sign = $("sign"), model = $("model"), kind = $("kind"), flagged = $("flagged");
  const changed = $("changed");
  const columns = [...document.querySelectorAll("[data-column]")];
  const counts = [];
  const prompts = [...list.querySelectorAll("article")].map((element, place) => ({
    element, place, kind: element.dataset.kind, change: Number(element.dataset.change), words: null,
    sides: [...element.querySelectorAll("[data-signs]")].map((side) => ({
      element: side, model: side.dataset.model, signs: side.dataset.signs.split(" ").filter(Boolean),
    })),
  }));
  let shown = prompts, reordered = false, current = null, jumpedTo = null, hashTimer = 0, searchTimer = 0;

  const wanted = () => search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const contains = (prompt, needles) => {
    // Only what was written, not what the page says about it.
    prompt.words ??= [...prompt.element.querySelectorAll(".text")].map((e) => e.textContent).join("\n").toLowerCase();
    return needles.every((needle) => prompt.words.includes(needle));
  };
  const shows = (side) => (model.value === "" || side.model === model.value)
    && (sign.value ? side.signs.includes(sign.value) : side.signs.length > 0);

  function apply(target) {
    const needles = wanted(), bySign = flagged.checked || sign.value !== "";
    shown = prompts.filter((p) => (!kind.value || p.kind === kind.value) && (!bySign || p.sides.some(shows))
      && contains(p, needles));
    if (changed?.checked) shown.sort((a, b) => b.change - a.change || a.place - b.place);
    const kept = new Set(shown);
    for (const p of prompts) p.element.hidden = !kept.has(p);
    const inside = list.contains(document.activeElement);
    const order = [...shown, ...prompts.filter((p) => !kept.has(p))];
    // Only where the order changes: what is moved loses the focus.
    if (changed?.checked || reordered) list.append(...(changed?.checked ? order : prompts).map((p) => p.element));
    reordered = Boolean(changed?.checked);
    nothing.hidden = shown.length > 0;
    for (const [button, ofModel, ofSign] of counts) {
      button.setAttribute("aria-pressed", String(bySign && model.value === ofModel && sign.value === ofSign));
    }
    const active = [
      sign.value && sign.selectedOptions[0].text, bySign && !sign.value && "flagged",
      bySign && model.value && "of " + model.selectedOptions[0].text, kind.value && kind.selectedOptions[0].text,
      needles.length && "“" + search.value.trim() + "”",
    ].filter(Boolean).join(", ");
    $("active").textContent = active ? "(" + active + ")" : "";
    $("shown").textContent = shown.length + " of " + prompts.length + " prompts shown";
    highlight(needles);
    if (target === "stay") follow();
    else go(kept.has(current) && target !== "first" ? current : (shown.find((p) => current && target !== "first"
      && p.place > current.place) ?? shown[0]), !inside);
  }

  function highlight(needles) {
    if (!window.CSS?.highlights) return;
    CSS.highlights.delete("found");
    if (!needles.length) return;
    const ranges = [];
    for (const p of shown) for (const text of p.element.querySelectorAll(".text")) {
      const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
      while (walker.nextNode() && ranges.length < 5000) {
        const node = walker.currentNode, content = node.data.toLowerCase();
        // A few letters change their length in lower case; places would then be wrong.
        if (content.length !== node.data.length) continue;
        for (const needle of needles) for (let at = content.indexOf(needle); at >= 0; at = content.indexOf(needle, at + needle.length)) {
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + needle.length);
          ranges.push(range);
        }
      }
    }
    if (ranges.length) CSS.highlights.set("found", new Highlight(...ranges));
  }

  function mark(prompt) {
    if (current !== prompt) {
      current?.element.removeAttribute("aria-current");
      prompt?.element.setAttribute("aria-current", "true");
      current = prompt;
    }
    const at = shown.indexOf(prompt);
    const few = shown.length < prompts.length;
    $("position").textContent = (at >= 0 ? at + 1 + " of " : "") + shown.length + (at < 0 ? " prompts" : few ? " shown" : "");
    $("previous").disabled = at <= 0;
    $("next").disabled = at >= shown.length - 1;
    clearTimeout(hashTimer);
    hashTimer = setTimeout(() => {
      const hash = current ? "#" + current.element.id : "";
      if (location.hash === hash) return;
      try {
        history.replaceState(null, "", hash || location.pathname + location.search);
      } catch {
        // A page inside another may not change its address.
      }
    }, 150);
  }

  function go(prompt, quietly) {
    if (!prompt) {
      mark(null);
      nothing.scrollIntoView({ block: "center" });
      return;
    }
    prompt.element.scrollIntoView({ block: "start" });
    jumpedTo = Math.round(scrollY);
    if (!quietly) prompt.element.querySelector("h2").focus({ preventScroll: true });
    mark(prompt);
  }

  const step = (by) => {
    const at = shown.indexOf(current) + by;
    if (at >= 0 && at < shown.length) go(shown[at]);
  };

  // The current prompt is the last one that has reached the bar.
  function follow() {
    // Where the bar ends once it sticks: before, none has been begun.
    const line = bar.offsetHeight + 24;
    const end = scrollY > 0 && Math.ceil(scrollY + innerHeight) >= document.documentElement.scrollHeight;
    mark(end ? shown.at(-1) ?? null : shown.findLast((p) => p.element.getBoundingClientRect().top <= line) ?? null);
  }

  function clear() {
    search.value = sign.value = model.value = kind.value = "";
    flagged.checked = false;
    if (changed) changed.checked = false;
    for (const box of columns) box.checked = true;
    showColumns();
    apply(current ? "" : "stay");
  }

  function showColumns() {
    const off = new Set(columns.filter((box) => !box.checked).map((box) => box.dataset.column));
    for (const p of prompts) for (const side of p.sides) side.element.hidden = off.has(side.model);
  }

  function fromHash() {
    const prompt = prompts.find((p) => "#" + p.element.id === location.hash);
    if (!prompt) return false;
    mark(prompt);
    if (prompt.element.hidden) clear();
    else go(prompt);
    return true;
  }

  function toggleFlagged() {
    flagged.checked = !flagged.checked;
    flagged.dispatchEvent(new Event("change"));
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
      const pressed = button.getAttribute("aria-pressed") === "true";
      sign.value = pressed ? "" : cell.dataset.sign;
      model.value = pressed ? "" : cell.dataset.model;
      flagged.checked = !pressed && cell.dataset.sign === "";
      apply(pressed ? "stay" : "first");
    });
    cell.replaceChildren(button);
    counts.push([button, cell.dataset.model, cell.dataset.sign]);
  }

  sign.addEventListener("change", () => {
    if (!sign.value && !flagged.checked) model.value = "";
    apply();
  });
  flagged.addEventListener("change", () => {
    if (!flagged.checked) sign.value = model.value = "";
    apply();
  });
  model.addEventListener("change", () => {
    // A model alone means: what is flagged of it.
    if (model.value && !sign.value) flagged.checked = true;
    apply();
  });
  kind.addEventListener("change", () => apply());
  changed?.addEventListener("change", () => apply("first"));
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
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("clear").addEventListener("click", clear);
  $("all").addEventListener("click", clear);
  $("ask").addEventListener("click", () => help.showModal());
  $("close").addEventListener("click", () => help.close());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.key === "Escape") {
      clearTimeout(searchTimer);
      search.blur();
      clear();
      event.preventDefault();
      return;
    }
    if (event.target.matches("select, input:not([type=checkbox])")) return;
    // A table that is wider than the screen is moved with the arrows.
    const arrows = !event.target.closest(".scroll");
    const actions = {
      j: () => step(1), k: () => step(-1), "/": () => search.select(), f: toggleFlagged, "?": () => help.showModal(),
      ArrowRight: arrows && (() => step(1)), ArrowLeft: arrows && (() => step(-1)),
    };
    const action = Object.hasOwn(actions, event.key) && actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (jumpedTo !== null && Math.abs(scrollY - jumpedTo) < 2) return;
      jumpedTo = null;
      follow();
    });
  }, { passive: true });
  addEventListener("hashchange", fromHash);
  new ResizeObserver(() => {
    document.documentElement.style.setProperty("--bar", bar.getBoundingClientRect().height + "px");
  }).observe(bar);

  bar.hidden = false;
  filters.open = matchMedia("(min-width: 56rem) and (min-height: 42rem)").matches;
  document.documentElement.style.setProperty("--bar", bar.getBoundingClientRect().height + "px");
  if (!fromHash()) follow();
})();
