"use strict";
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const follow = () => { root.dataset.theme = dark.matches ? "dark" : "light"; };
  follow();
  dark.addEventListener("change", follow);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  });

  const tip = document.getElementById("tip");
  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 6)) + "px";
    tip.style.top = (y + box.height + 24 > innerHeight ? Math.max(6, y - box.height - 12) : y + 16) + "px";
  };
  const show = (element, x, y) => {
    tip.textContent = element.dataset.tip;
    tip.classList.add("on");
    place(x, y);
  };
  const hide = () => tip.classList.remove("on");
  document.addEventListener("pointermove", (event) => {
    const element = event.target.closest("[data-tip]");
    if (element) show(element, event.clientX, event.clientY); else hide();
  });
  document.addEventListener("focusin", (event) => {
    const element = event.target.closest("[data-tip]");
    if (!element) { hide(); return; }
    const box = element.getBoundingClientRect();
    show(element, box.right, box.bottom);
  });
  document.addEventListener("scroll", hide, { passive: true });

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      for (const mark of document.querySelectorAll(".fronts ." + button.dataset.key)) mark.classList.toggle("dim", !on);
    });
  }

  for (const frame of document.querySelectorAll(".scroll")) {
    const inner = frame.firstElementChild;
    const look = () => {
      frame.classList.toggle("wide", inner.scrollWidth > inner.clientWidth + 1);
      frame.classList.toggle("more", inner.scrollWidth - inner.clientWidth - inner.scrollLeft > 1);
    };
    inner.addEventListener("scroll", look, { passive: true });
    addEventListener("resize", look, { passive: true });
    look();
  }

  document.getElementById("save").addEventListener("click", async () => {
    const bytes = Uint8Array.from(atob(document.getElementById("result").textContent), (letter) => letter.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const blob = new Blob([await new Response(unpacked).text()], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = document.title.replace(/[^\w.-]+/g, "-").toLowerCase() + ".json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
})();
