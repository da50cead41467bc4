"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const sayTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    sayTheme();
  });
  dark.addEventListener("change", sayTheme);
  theme.hidden = false;
  sayTheme();

  const layers = [...document.querySelectorAll("details.layer")];
  const open = (layer) => {
    layer.open = true;
    layer.querySelector("summary").focus({ preventScroll: true });
    layer.scrollIntoView({ block: "start" });
  };
  for (const node of document.querySelectorAll("a.node")) {
    node.addEventListener("click", (event) => {
      event.preventDefault();
      history.replaceState(null, "", node.getAttribute("href"));
      open(document.getElementById(`layer-${node.dataset.layer}`));
    });
  }
  const asked = location.hash.startsWith("#layer-") && document.getElementById(location.hash.slice(1));
  if (asked) open(asked);

  const all = document.getElementById("open-all");
  const sayAll = () => {
    const opened = layers.every((layer) => layer.open);
    all.textContent = opened ? "Close all" : "Open all";
    all.setAttribute("aria-pressed", String(opened));
  };
  all.addEventListener("click", () => {
    const opened = layers.every((layer) => layer.open);
    for (const layer of layers) layer.open = !opened;
    sayAll();
  });
  for (const layer of layers) layer.addEventListener("toggle", sayAll);
  all.hidden = layers.length < 2;

  const save = document.getElementById("save");
  save.addEventListener("click", () => {
    const blob = new Blob([document.getElementById("data").textContent], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "report.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  save.hidden = false;
})();
