// Before anything is drawn: the theme that was chosen last, or the system's.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("ftbench-theme"); } catch { /* a page from disk may have no storage */ }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.classList.add("scripted");
})();
