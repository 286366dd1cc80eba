// The training photos that a photo resembles most, folded into one line.

function createElement(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

// [{ path, label, similarity, picture }], the nearest first
export function createNeighbours(neighbours) {
  const details = createElement("details", "neighbours");
  const list = createElement("ul");
  for (const { path, label, similarity, picture } of neighbours) {
    const item = createElement("li");
    const image = createElement("img");
    image.src = picture;
    image.alt = "";
    const name = createElement("span", "name", label);
    name.title = path;
    item.append(image, name, createElement("span", "similarity", `similarity ${similarity.toFixed(2)}`));
    list.append(item);
  }
  details.append(createElement("summary", "", `Training photos that it resembles: ${countLabels(neighbours)}`), list);
  return details;
}

// "4 tulip, 1 rose"
function countLabels(neighbours) {
  const counts = new Map();
  for (const { label } of neighbours) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].sort(([, first], [, second]) => second - first).map(([label, count]) => `${count} ${label}`).join(", ");
}
