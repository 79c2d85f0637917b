/** The document: walks over it, and watches it. Text and attributes are edited, nodes never replaced. */
import { on } from "./api";
import { addTargets, returning, startFinding, swapped } from "./lease";
import { linkSwapper } from "./swap";

// What visitors or scripts fill in, what nobody sees, and what the page excepts.
const EDITABLE = "contenteditable";
const IGNORE = "data-mailtrack-ignore";
const KEEP = `head,script,style,noscript,input,textarea,select,[${EDITABLE}],[${IGNORE}]`;
const CLIPBOARD = "data-clipboard-text";
const ADD = "data-mailtrack-add";

const enum NodeType {
  Element = 1,
  Text = 3,
}
/** A mask of NodeFilter's. */
const TEXTS = 4;

// A script that keeps writing the old text back wins: so many edits outside of a scan in so many milliseconds, then
// peace. They are counted for the page, since what is written back may be a new node each time.
const enum Edits {
  Most = 5000,
  Within = 10000,
}
let edits = 0;

const linkSwapped = linkSwapper(swapped);

/** Whether the page keeps what is in here as it is. */
export const kept = (element: Element | null) => element?.closest(KEEP);

function edit(node: Text | Attr | null, element: Element | null, change: (value: string) => string) {
  // What else is kept within what is put back stays as it is.
  if (!node || kept(element) != returning.to) return;
  const value = change(node.nodeValue!);
  if (value === node.nodeValue) return;
  if (!edits) setTimeout(() => (edits = 0), Edits.Within);
  if (edits++ < Edits.Most) node.nodeValue = value;
}

/** Additional addresses that a walk came across. */
let more: string[] = [];

function editAttributes(element: Element) {
  more.push(...(element.getAttribute(ADD)?.match(/[^\s,]+/g) || []));
  edit(element.getAttributeNode("href"), element, linkSwapped);
  edit(element.getAttributeNode(CLIPBOARD), element, swapped);
}

function walk(root: Node) {
  if (root.nodeType === NodeType.Element) editAttributes(root as Element);
  if (root.firstChild)
    (root as Element).querySelectorAll(`[href*="mailto:" i],[${CLIPBOARD}],[${ADD}]`).forEach(editAttributes);
  // No NodeIterator: until it is collected, each removal of a node costs the document something for it.
  const walker = document.createTreeWalker(root, TEXTS);
  for (let node: Node | null = root; node; node = walker.nextNode())
    if (node.nodeType === NodeType.Text && node.nodeValue!.includes("@"))
      edit(node as Text, node.parentElement, swapped);
}

/** The page keeps `element` from now on, and is to keep its own text and not ours. */
function putBack(element: Element) {
  if (kept(element.parentElement)) return;
  returning.to = element;
  walk(element);
  returning.to = undefined;
}

let observer: MutationObserver;

/** From the next scan on, what is added or changed is looked at, and then `then` is called. */
export function watch(then: () => void) {
  observer = new MutationObserver((changes) => {
    const changed = new Set<Node | null>();
    for (const { type, target, addedNodes, attributeName, oldValue } of changes) {
      if (KEEP.includes(attributeName!)) oldValue ?? putBack(target as Element);
      else if (type === "attributes") editAttributes(target as Element);
      else if (type === "characterData") changed.add(target);
      else addedNodes.forEach((node) => changed.add(node));
    }
    // The parser reports a table, then its rows, then their cells: the walk over the table has seen them all.
    changed.forEach((node) => {
      // What is out of the page again shows no ancestor that says to keep it as it is.
      if (node!.isConnected && !changed.has(node!.parentNode)) walk(node!);
    });
    add(...more);
    observer.takeRecords(); // our own edits
    then();
  });
}

/** The whole page: shows what is to be shown now, and finds what stands there. */
export function scan() {
  startFinding();
  // To observe again changes nothing.
  observer.observe(document, {
    childList: true,
    characterData: true,
    attributeFilter: ["href", CLIPBOARD, ADD, EDITABLE, IGNORE],
    attributeOldValue: true,
    subtree: true,
  });
  edits = -Infinity;
  walk(document);
  if (addTargets(more)) walk(document);
  edits = 0;
  more = [];
  observer.takeRecords(); // our own edits
}

/** Additional addresses to replace. */
export function add(...addresses: string[]) {
  more = [];
  if (addTargets(addresses) && on()) scan();
}
