// The targets of links stop below the sticky menu, however many lines it has.
(() => {
  const nav = document.querySelector("nav");
  const measure = () => document.documentElement.style.setProperty("--nav-height", `${nav.offsetHeight}px`);
  new ResizeObserver(measure).observe(nav);
  measure();
})();
