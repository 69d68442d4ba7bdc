// Makes elements. Text always becomes a text node: nothing that anybody wrote is ever read as HTML.

/** An element with attributes (`on…` are listeners, `class` may be empty) and children: elements, text, lists of them,
 * or null for none. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

export function replace(element, ...children) { element.replaceChildren(...nodes(children)); }

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Two columns: names, and what they are. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, ...value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** A heading that takes the focus when its view opens. */
export function heading(words) { return h("h1", { tabindex: "-1" }, words); }
