// Runs before the page is drawn, so that it never flashes in the other colours.
const theme = localStorage.getItem("recipe-hf.theme");
if (theme) document.documentElement.dataset.theme = theme;
