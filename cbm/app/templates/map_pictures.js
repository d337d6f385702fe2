// The pictures that the map asked for have come.
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-key]');
  if (button) trigger('select', {key: button.dataset.key});
});
watch('value', () => setTimeout(() => document.dispatchEvent(new Event('cbm-map-pictures')), 0));
