// The switch between light and dark; the choice is kept in the browser. head.html applies it before the first paint.
element.addEventListener("click", (event) => {
  if (!event.target.closest("[data-light]")) return;
  const dark = document.body.classList.toggle("dark");
  document.documentElement.classList.toggle("dark", dark);
  localStorage.setItem("imod-light", dark ? "dark" : "light");
});
