// A click on a button with a key selects it; a view that is drawn again gives the focus back to it.
let last = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-key]');
  if (!button) return;
  last = button.dataset.key;
  trigger('select', {key: last});
});
watch('value', () => {
  if (last === null || document.activeElement !== document.body) return;
  const again = [...element.querySelectorAll('button[data-key]')].find((button) => button.dataset.key === last);
  if (again) again.focus({preventScroll: true});
});
