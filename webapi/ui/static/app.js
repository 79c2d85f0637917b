// Small comforts; every page works without them.
"use strict";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText("value" in source ? source.value : source.textContent);
  } catch {  // not over http to another machine: mark it, so that Ctrl+C does it
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return;
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
});

// A form that asks first: <form data-confirm="Erase this message?">. Without script the page behind it asks.
document.addEventListener("submit", (event) => {
  const words = event.target.dataset.confirm;
  if (words && !confirm(words)) event.preventDefault();
});

// A form that is sent by itself when a choice in it changes: <form data-auto>.
document.addEventListener("change", (event) => {
  const form = event.target.form;
  if (form && "auto" in form.dataset && event.target.matches("select, input[type=checkbox], input[type=radio]")) {
    form.requestSubmit();
  }
});

// Times in the reader's own zone, as a hint beside the UTC that is printed.
for (const time of document.querySelectorAll("time[datetime]")) {
  time.title = new Date(time.dateTime).toLocaleString() + " here";
}
