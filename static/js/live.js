// Parts that poll are replaced whole. What the reader did in them stays: opened or closed details, and how far a log
// was scrolled; a log read at its end stays at its end.
"use strict";
(() => {
  const AT_END = 24; // pixels
  let kept = null;

  const inside = (root, selector) => [...root.querySelectorAll(selector)].filter((element) => element.id);
  const isAtEnd = (element) => element.scrollHeight - element.scrollTop - element.clientHeight < AT_END;

  document.addEventListener("htmx:beforeSwap", (event) => {
    const live = event.detail.target.closest?.("[data-live]");
    if (!live) return;
    kept = {
      details: inside(live, "details").map((element) => [element.id, element.open]),
      scrolled: inside(live, "[data-log]").map((element) => [element.id, isAtEnd(element) ? Infinity : element.scrollTop]),
    };
  });

  document.addEventListener("htmx:afterSettle", () => {
    if (!kept) return;
    for (const [id, open] of kept.details) {
      const element = document.getElementById(id);
      if (element) element.open = open;
    }
    for (const [id, top] of kept.scrolled) document.getElementById(id)?.scrollTo(0, Math.min(top, 1e9));
    kept = null;
  });

  document.addEventListener("DOMContentLoaded", () => {
    for (const log of document.querySelectorAll("[data-log]")) log.scrollTop = log.scrollHeight;
  });
})();
