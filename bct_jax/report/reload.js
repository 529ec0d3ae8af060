// Reloads a page that is made again, and shows what was open and where.
"use strict";
(() => {
  const seconds = Number(document.documentElement.dataset.reload);
  const key = `reload ${location.pathname}`;
  const folds = () => [...document.querySelectorAll("details")];
  const saved = sessionStorage.getItem(key);
  if (saved) {
    const [top, open] = JSON.parse(saved);
    folds().forEach((fold, i) => { fold.open = open[i] ?? fold.open; });
    scrollTo(0, top);
  }
  setInterval(() => {
    // Not while something is typed or marked.
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(
      document.activeElement?.tagName ?? "");
    if (typing || String(getSelection())) return;
    const view = [scrollY, folds().map((fold) => fold.open)];
    sessionStorage.setItem(key, JSON.stringify(view));
    location.reload();
  }, seconds * 1000);
})();
