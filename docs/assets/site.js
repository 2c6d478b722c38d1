// What is made by scripts gets names, and a place in the order of the keyboard.
function label() {
  for (const nav of document.querySelectorAll(".md-code__nav:not([aria-label])"))
    nav.setAttribute("aria-label", `Actions of code block ${nav.parentElement.id.replace(/\D/g, "")}`);
  for (const part of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])"))
    part.setAttribute("tabindex", "0");
}
addEventListener("load", label);
new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
