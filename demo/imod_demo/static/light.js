// The switch between light and dark; the browser keeps the choice, and the system's setting counts until there is one.
const set = (dark) => document.body.classList.toggle("dark", dark);
const kept = localStorage.getItem("imod-light");
if (kept) set(kept === "dark");
element.addEventListener("click", (event) => {
  if (!event.target.closest("[data-light]")) return;
  localStorage.setItem("imod-light", set(!document.body.classList.contains("dark")) ? "dark" : "light");
});
