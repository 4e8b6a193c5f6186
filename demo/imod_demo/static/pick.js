// Buttons in server-made HTML: a click on one with data-pick tells Python its number.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-pick]");
  if (button) trigger("select", { index: Number(button.dataset.pick) });
});
