// In the browser: what the tab looks at is written after the #; an address opened or gone back to is visited.
let visited = false;
const tabs = () => [...document.querySelectorAll('button[role=tab]')].filter((button) => button.offsetParent);
const here = () => {
  const said = element.querySelector('[data-address]');
  const open = tabs().find((button) => button.getAttribute('aria-selected') === 'true');
  const parts = [said ? said.dataset.address : ''];
  if (open && open !== tabs()[0]) parts.unshift('tab=' + encodeURIComponent(open.textContent.trim()));
  return parts.filter(Boolean).join('&');
};
const say = () => {
  const now = here();
  if (now !== window.location.hash.slice(1)) history.pushState(null, '', now ? '#' + now : window.location.pathname);
};
const visit = () => trigger('select', {key: window.location.hash.slice(1)});
watch('value', () => {
  if (visited || window.location.hash.length < 2) {
    visited = true;
    setTimeout(say, 100);  // a tab of the page that is opened with it is open by then
    return;
  }
  visited = true;
  visit();
});
window.addEventListener('popstate', () => { if (window.location.hash.slice(1) !== here()) visit(); });
document.addEventListener('click', (event) => {
  if (visited && event.target.closest('button[role=tab]')) setTimeout(say, 100);
});
