// Elements from data without ever parsing it as HTML, and text that cannot hide anything.

// h("button", {class: "x", onclick: f, "aria-label": "…"}, "text", child): text only ever becomes text nodes.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Characters that have no picture of their own or reorder their neighbours: controls, bidirectional marks, zero widths, fillers, lone surrogates,
// and the tags and variation selectors beyond the basic plane (\udb40…), in which a whole text can be hidden;
// joiners (U+200C, U+200D) too, unless they stand between two characters beyond ASCII, as in emoji, Persian or Hindi.
const HIDDEN = /(?<![^\u0000-\u007f\u200b-\u200f])[\u200c\u200d]|[\u200c\u200d](?![^\u0000-\u007f\u200b-\u200f])|[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|\udb40[\udc00-\udc7f\udd00-\uddef]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

export function visible(text) {
  return text.replace(HIDDEN, (character) => {
    const code = character.codePointAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

// One line that fits a label.
export function short(text, length = 60) {
  return visible(text.length > length ? `${text.slice(0, length)}…` : text).replace(/\s+/g, " ");
}

// A token as people need to see it: blanks are drawn where a token is nothing but blanks.
export function visibleToken(text) {
  if (text === "") return "∅";
  const drawn = /^\s+$/.test(text) ? text.replace(/ /g, "·").replace(/\t/g, "→") : text;
  return visible(drawn.replace(/\r\n|\r|\n/g, "↵\n"));
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value).replace("-", "−");
  const text = size >= 1e6 || size < 1e-5 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  return text.replace(/-/g, "−");
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

// Typeset TeX where the page has MathJax (JupyterLab's nbconvert pages and many others). Its macros that make links, styles or
// ids are not let through, and links that appear all the same are removed: the text was written by a model.
const TEX = /\$\$[^$]+\$\$|\$[^$\n]+\$|\\\(.+?\\\)|\\\[[\s\S]+?\\\]/;
const UNSAFE_TEX = /\\(href|url|style|class|cssId|require|html|data|mmlToken|unicode|def|let|newcommand|newenvironment|renewcommand)/;

export async function typeset(element) {
  const math = globalThis.MathJax;
  if (!math || !TEX.test(element.textContent) || UNSAFE_TEX.test(element.textContent)) return;
  if (math.typesetPromise) await math.typesetPromise([element]).catch(() => {});
  else if (math.Hub) await new Promise((done) => math.Hub.Queue(["Typeset", math.Hub, element], done));
  for (const link of element.querySelectorAll("a, [*|href]")) for (const name of ["href", "xlink:href"]) link.removeAttribute(name);
  const root = element.getRootNode();
  if (!(root instanceof ShadowRoot)) return; // MathJax writes its rules into the document, which a shadow does not see
  for (const style of root.querySelectorAll("style[data-math]")) style.remove();
  for (const style of document.querySelectorAll("style")) {
    const rules = /mjx|MathJax/i.test(style.id + style.textContent) ? [...(style.sheet?.cssRules ?? [])].map((rule) => rule.cssText).join("\n") : "";
    if (rules) root.append(h("style", { "data-math": true }, rules));
  }
}
