// A button is chosen by a click or, while the tab is seen, by the first letter of its key.
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-key]');
  if (button) trigger('select', {key: button.dataset.key, row: button.dataset.row});
});
document.addEventListener('keydown', (event) => {
  const typing = event.target.closest('input, textarea, select, [contenteditable]');
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || typing || !element.offsetParent) return;
  const buttons = [...element.querySelectorAll('button[data-key]')];
  buttons.find((button) => button.dataset.key[0] === event.key)?.click();
});
