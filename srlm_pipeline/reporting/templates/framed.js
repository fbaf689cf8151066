"use strict";
(() => {
  const pages = JSON.parse(document.getElementById("pages").textContent);
  const own = document.getElementById("pages").dataset.own;
  // The report as it was left, and how far it was scrolled.
  const report = { body: document.body, style: document.querySelector("style"), title: document.title };

  function show(body, style, title) {
    document.querySelector("style").replaceWith(style);
    document.body.replaceWith(body);
    document.title = title;
  }

  function open(name) {
    const page = new DOMParser().parseFromString(pages[name], "text/html");
    const scripts = [...page.body.querySelectorAll("script")];
    show(document.adoptNode(page.body), document.adoptNode(page.querySelector("style")), page.title);
    // One that was parsed does not run.
    for (const parsed of scripts) {
      const script = document.createElement("script");
      script.textContent = parsed.textContent;
      parsed.replaceWith(script);
    }
    scrollTo(0, 0);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    if (!link) return;
    const [name, place] = link.getAttribute("href").split("#");
    if (name !== own && !(name in pages)) return;
    event.preventDefault();
    if (name === own) {
      show(report.body, report.style, report.title);
      scrollTo(0, report.scrolled ?? 0);
    } else {
      if (document.body === report.body) report.scrolled = scrollY;
      open(name);
    }
    if (place) document.getElementById(place)?.scrollIntoView();
  });
})();
