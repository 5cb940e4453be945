// What tests/look.py does within the page of JupyterLab.
// `page` is what is looked at, `areas` what must hold all that is in it, `scroller` what scrolls.

// A font as wide as those of most systems; and no kernel is there, so none is asked for.
document.head.insertAdjacentHTML('beforeend', `<style>
  :root { --jp-content-font-family: Helvetica, Arial, sans-serif !important }
  .jp-Dialog { display: none !important }
</style>`);

// Show a file of the repository, and close what was shown before, without asking.
async function openFile(path, factory) {
  for (const widget of [...jupyterapp.shell.widgets('main')]) widget.dispose();
  document.querySelector('iframe.forge')?.remove();
  const shown = await jupyterapp.commands.execute('docmanager:open', {path, factory});
  await shown.context.ready;
  await shown.revealed;
  window.page = shown.content.node;
  window.areas = '.jp-OutputArea-output, .jp-MarkdownOutput';
  window.scroller = page.querySelector('.jp-WindowedPanel-outer') ?? page;
}

// Show the README that JupyterLab has turned into HTML, with its formulas, in a page of its own.
async function asForge(style) {
  const rules = [...document.styleSheets].flatMap(s => [...s.cssRules]).map(rule => rule.cssText);
  const math = rules.filter(rule => /mjx/i.test(rule)).join('');
  const html = page.querySelector('.jp-RenderedMarkdown').innerHTML;
  const frame = Object.assign(document.createElement('iframe'), {className: 'forge'});
  frame.style = 'position: fixed; inset: 0; width: 100%; height: 100%; border: 0; z-index: 99999';
  frame.srcdoc = `<!doctype html><style>${math}${style}</style><article>${html}</article>`;
  const loaded = new Promise(resolve => { frame.onload = resolve; });
  document.body.append(frame);
  await loaded;
  window.page = frame.contentDocument.querySelector('article');
  window.areas = 'article';
  window.scroller = frame.contentDocument.scrollingElement;
}

// What there is to judge.
function facts() {
  const all = selector => [...page.querySelectorAll(selector)];
  const shownWidth = e => Math.round(e.getBoundingClientRect().width);
  const width = e => Math.max(e.scrollWidth, shownWidth(e));
  const name = e => `${e.localName} "${(e.alt || e.innerText || '').trim().slice(0, 50)}"`;
  const wide = [];
  for (const area of page.matches(areas) ? [page] : all(areas)) {
    const isCut = e => width(e) > area.clientWidth + 1;
    const cut = [...area.querySelectorAll('table, img, svg, pre, mjx-container')].filter(isCut);
    if (!cut.length && area.scrollWidth > area.clientWidth + 1) cut.push(area);
    for (const e of cut) wide.push([name(e).replace(/\s+/g, ' '), width(e), area.clientWidth]);
  }
  const texts = document.createTreeWalker(page, NodeFilter.SHOW_TEXT), raw = [];
  while (texts.nextNode()) {
    const {data, parentElement} = texts.currentNode;
    if (!parentElement.closest('code, pre, style, .cm-editor, mjx-container'))
      raw.push(...(data.match(/\$[^\s\d].{0,40}/g) ?? []));
  }
  const errors = all('mjx-merror, mjx-mtext[style*="color: red"]')  // red: an unknown command
    .map(e => e.dataset.mjxError ?? e.closest('mjx-container').textContent);
  if (page.innerText.includes('Math input error')) errors.push('Math input error');
  return {
    wide, raw, errors,
    small: all('img[width]').map(e => [e.alt, shownWidth(e), Number(e.getAttribute('width'))])
      .filter(([, shown, asked]) => shown < 0.6 * asked),
    unloaded: all('img[src]').filter(e => !(e.complete && e.naturalWidth))
      .map(e => `${e.alt} ${e.src.slice(0, 80)}`.trim()),
    overflow: Math.max(0, scroller.scrollWidth - scroller.clientWidth),
    height: scroller.scrollHeight,
  };
}
