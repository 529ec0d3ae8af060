// The rollout browser of a report. Completions are hostile until shown
// otherwise: they become text nodes (textContent), and nothing else; the page's
// policy lets no string become markup or code.
"use strict";
(async () => {
  const ROW_HEIGHT = 54; // as .item in style.css
  const CLIP = 8000; // characters of a text shown at a time
  const MAX_MARKS = 200; // places marked in a text
  const MAX_BESIDE = 24; // answers side by side
  const CHARS = new Intl.NumberFormat("en");
  // As text.py does it: what cannot be seen, or could act, is an escape.
  const HIDDEN = /(?:(?![\n\u200c\u200d])[\p{C}\p{Zl}\p{Zp}])+/gu;
  const NAMES = { "\t": "\\t", "\r": "\\r", "\0": "\\0" };
  const FACETS = [
    "run", "arm", "step", "split", "label", "reason", "decorated", "flagged",
  ];
  // Why an answer is labelled `other`.
  const REASONS = {
    both: "it shows both behaviors",
    neither: "it shows neither behavior",
    wrong: "it shows a behavior, with a wrong answer",
    malformed: "it cannot be read",
    truncated: "it was cut at the limit of new tokens",
  };

  const at = (id) => document.getElementById(`browse-${id}`);
  const block = at("data");

  // The page is shown first; what is packed is unpacked beside it.
  async function unpack() {
    await new Promise((resolve) => requestAnimationFrame(() =>
      setTimeout(resolve)));
    const letters = atob(block.textContent);
    block.remove();
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
    const packed = new Blob([bytes]).stream();
    const stream = packed.pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  const data = await unpack();
  const column = {};
  for (const [name, values] of Object.entries(data.columns)) {
    column[name] = Int32Array.from(values);
  }
  const count = column.arm.length;
  column.run = column.arm.map((arm) => data.arms[arm].run);
  column.flagged = new Int32Array(count);
  const { strings, prompts, arms, runs, references } = data;
  data.columns = null;
  const WORST = new Set(["other", "wrong"]);

  // --- text ----------------------------------------------------------------

  function escaped(char) {
    if (char in NAMES) return NAMES[char];
    const code = char.codePointAt(0);
    const [mark, digits] =
      code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${mark}${code.toString(16).padStart(digits, "0")}`;
  }

  const escapes = (hidden) => Array.from(hidden, escaped).join("");
  const visible = (text) => text.replace(HIDDEN, escapes);

  function element(tag, kind, text) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = visible(text);
    return made;
  }

  // Appends the text to the node, its escapes in <i>.
  function append(node, text) {
    let from = 0;
    for (const found of text.matchAll(HIDDEN)) {
      node.append(text.slice(from, found.index));
      node.append(element("i", "", found[0]));
      from = found.index + found[0].length;
    }
    node.append(text.slice(from));
  }

  // The same, with what was searched for in <mark>.
  function appendMarked(node, text) {
    let from = 0, marks = 0;
    for (const found of wanted ? text.matchAll(wanted) : []) {
      if (++marks > MAX_MARKS) break;
      append(node, text.slice(from, found.index));
      append(node.appendChild(element("mark")), found[0]);
      from = found.index + found[0].length;
    }
    append(node, text.slice(from));
  }

  // At most `size` UTF-16 units from `from` on that cut no pair.
  function piece(text, from, size) {
    let end = from + size;
    const cut = text.charCodeAt(end - 1);
    if (end < text.length && cut >= 0xd800 && cut < 0xdc00) end--;
    return text.slice(from, end);
  }

  // A text in full where it is short, else with a button for more of it.
  function textBox(text) {
    const box = element("div", "text");
    box.dir = "auto";
    if (!text) box.append(element("span", "soft", "(no text)"));
    let shown = 0;
    const more = element("button", "more");
    more.type = "button";
    function grow() {
      const next = piece(text, shown, CLIP);
      appendMarked(box, next);
      shown += next.length;
      more.remove();
      if (shown === text.length) return;
      more.textContent =
        `${CHARS.format(shown)} of ${CHARS.format(text.length)}` +
        " characters are shown: show more";
      box.append(more);
    }
    more.addEventListener("click", grow);
    if (text) grow();
    return box;
  }

  // --- what a value is called, and which there are --------------------------

  // Names of cells tell arms apart, those of several runs may not.
  const apart = new Set(arms.map((arm) => arm.name)).size === arms.length;
  const armName = (arm) =>
    apart ? arms[arm].name : `${arms[arm].name} · ${runs[arms[arm].run]}`;
  const named = {
    run: (value) => runs[value],
    arm: armName,
    step: String,
    decorated: (value) => ["not scored", "no", "yes"][value + 1],
    flagged: (value) => ["no", "yes"][value],
  };
  const name = (facet, value) =>
    (named[facet] || ((v) => strings[v] || "(none)"))(value);
  const facets = FACETS.filter((facet) => at(facet));
  const values = {};
  for (const facet of facets) {
    values[facet] = facet === "flagged" ? [0, 1] : [...new Set(column[facet])];
    if (["run", "arm", "step", "decorated", "flagged"].includes(facet)) {
      values[facet].sort((a, b) => a - b);
    } else {
      values[facet].sort((a, b) => (name(facet, a) < name(facet, b) ? -1 : 1));
    }
  }

  function option(select, value, text) {
    const made = element("option", "", text);
    made.value = value;
    select.append(made);
  }

  for (const facet of facets) {
    option(at(facet), "", "all");
    for (const value of values[facet]) option(at(facet), value, "");
  }
  option(at("order"), "worst", "other and wrong first");
  option(at("order"), "file", "as in the files");
  option(at("order"), "prompt", "by prompt");
  option(at("beside-arm"), "every", "every arm");
  option(at("beside-arm"), "same", "the same arm");
  option(at("beside-arm"), "none", "nothing");
  for (const arm of values.arm) option(at("beside-arm"), arm, armName(arm));
  option(at("beside-step"), "same", "the same step");
  option(at("beside-step"), "every", "every step");
  for (const step of values.step) {
    option(at("beside-step"), step, `step ${step}`);
  }

  // The rows of one prompt, of all arms and steps.
  const byPrompt = new Map();
  const promptKey = (i) =>
    `${column.split[i]}/${column.id[i]}/${column.prompt[i]}`;
  for (let i = 0; i < count; i++) {
    const key = promptKey(i);
    if (byPrompt.has(key)) byPrompt.get(key).push(i);
    else byPrompt.set(key, [i]);
  }

  // --- which rows are shown --------------------------------------------------

  let wanted = null; // a pattern
  let shown = []; // row numbers in their order
  let chosen = 0; // place in `shown`

  // Which texts hold what is searched for; each distinct one is looked at once.
  function found() {
    const typed = at("q").value;
    wanted = typed
      ? new RegExp(typed.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu")
      : null;
    if (!wanted) return null;
    const hits = strings.map((text) => text.search(wanted) >= 0);
    const inPrompt = prompts.map((p) => p.some(([, said]) => hits[said]));
    return (i) => hits[column.text[i]] || inPrompt[column.prompt[i]];
  }

  function filter() {
    const hit = found();
    const limits = facets.map((f) =>
      at(f).value === "" ? null : Number(at(f).value),
    );
    const columns = facets.map((f) => column[f]);
    const counts = facets.map(() => new Map());
    const add = (j, i) => {
      const value = columns[j][i];
      counts[j].set(value, (counts[j].get(value) || 0) + 1);
    };
    shown = [];
    for (let i = 0; i < count; i++) {
      if (hit && !hit(i)) continue;
      let misses = 0, missed = -1;
      for (let j = 0; j < limits.length && misses < 2; j++) {
        if (limits[j] !== null && columns[j][i] !== limits[j]) {
          misses++;
          missed = j;
        }
      }
      if (misses === 0) {
        shown.push(i);
        for (let j = 0; j < limits.length; j++) add(j, i);
      } else if (misses === 1) {
        add(missed, i); // would be shown, were it not for this filter
      }
    }
    facets.forEach((facet, j) => {
      for (const made of at(facet).options) {
        if (made.value === "") continue;
        const value = Number(made.value);
        const n = CHARS.format(counts[j].get(value) || 0);
        made.textContent = visible(`${name(facet, value)} (${n})`);
      }
    });
    order();
  }

  function order() {
    const how = at("order").value;
    if (how === "worst") {
      const worst = (i) => (WORST.has(strings[column.label[i]]) ? 0 : 1);
      shown.sort((a, b) => worst(a) - worst(b) || a - b);
    } else if (how === "prompt") {
      const { split, prompt, id } = column;
      shown.sort(
        (a, b) =>
          split[a] - split[b] || prompt[a] - prompt[b] || id[a] - id[b] ||
          a - b,
      );
    }
  }

  // --- the list: only the rows in sight are in the page -----------------------

  const list = at("list"), space = at("space");

  function item(place) {
    const i = shown[place];
    const made = element("div", "item");
    made.id = `browse-item-${place}`;
    made.style.top = `${place * ROW_HEIGHT}px`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-setsize", shown.length);
    made.setAttribute("aria-posinset", place + 1);
    made.setAttribute("aria-selected", place === chosen);
    made.append(head(i));
    const said = strings[column.text[i]];
    const short = piece(said, 0, 160).replaceAll("\n", " ");
    made.append(element("div", "line", short || "(no text)"));
    made.addEventListener("click", () => {
      choose(place);
      list.focus();
    });
    return made;
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
    const fit = Math.ceil(list.clientHeight / ROW_HEIGHT) + 8;
    const items = [];
    for (let k = first; k < Math.min(shown.length, first + fit); k++) {
      items.push(item(k));
    }
    space.style.height = `${shown.length * ROW_HEIGHT}px`;
    space.replaceChildren(...items);
    if (document.getElementById(`browse-item-${chosen}`)) {
      list.setAttribute("aria-activedescendant", `browse-item-${chosen}`);
    } else {
      list.removeAttribute("aria-activedescendant");
    }
  }

  // --- the chosen answer, and others beside it ---------------------------------

  function head(i) {
    const made = element("div", "head");
    const label = strings[column.label[i]];
    made.append(element("span", `tag ${label}`, label));
    const facts = [armName(column.arm[i]), `step ${column.step[i]}`];
    if (column.reason[i] >= 0 && strings[column.reason[i]]) {
      facts.push(strings[column.reason[i]]);
    }
    if (column.decorated[i] === 1) facts.push("decorated");
    if (strings[column.stop[i]] === "length") facts.push("cut off");
    if (column.flagged[i]) facts.push("flagged");
    append(made, ` ${facts.join(" · ")}`);
    return made;
  }

  const noStop = (text) => text.replace(/\.$/, "");

  // Why a row has its label, in a sentence.
  function why(i) {
    const label = strings[column.label[i]];
    const reason = column.reason[i] >= 0 ? strings[column.reason[i]] : "";
    const told = data.told[column.run[i]];
    const shows = {
      initial: told.Initial && `shows the initial behavior: ${noStop(told.Initial)}`,
      alternate:
        told.Alternate && `shows the alternate behavior: ${noStop(told.Alternate)}`,
      other: REASONS[reason] || reason,
    }[label];
    const right = ["its task is not done right", "its task is done right"];
    return [shows, right[column.right[i]]].filter(Boolean).join("; ");
  }

  function button(text, press) {
    const made = element("button", "", text);
    made.type = "button";
    made.addEventListener("click", press);
    return made;
  }

  function record(i) {
    const said = references[column.prompt[i]];
    return {
      run: runs[column.run[i]],
      arm: arms[column.arm[i]].name,
      step: column.step[i],
      split: strings[column.split[i]],
      id: strings[column.id[i]],
      prompt: prompts[column.prompt[i]].map(([role, content]) =>
        ({ role: strings[role], content: strings[content] })),
      text: strings[column.text[i]],
      label: strings[column.label[i]],
      reason: column.reason[i] >= 0 ? strings[column.reason[i]] : "",
      decorated: [null, false, true][column.decorated[i] + 1],
      right: [null, false, true][column.right[i] + 1],
      stop: strings[column.stop[i]],
      ...(said && { initial: strings[said[0]], alternate: strings[said[1]] }),
    };
  }

  async function copy(text, pressed) {
    const before = pressed.textContent;
    try {
      await navigator.clipboard.writeText(text);
      pressed.textContent = "copied";
    } catch {
      pressed.textContent = "the browser does not let it be copied";
    }
    setTimeout(() => { pressed.textContent = before; }, 1500);
  }

  // Flags are kept by the browser, for this page's address.
  const FLAGS = `flags ${location.pathname}`;

  function flag(i) {
    column.flagged[i] = 1 - column.flagged[i];
    const names = [];
    column.flagged.forEach((on, k) => { if (on) names.push(rowName(k)); });
    localStorage.setItem(FLAGS, JSON.stringify(names));
    update(i);
  }

  function recallFlags() {
    const names = new Set(JSON.parse(localStorage.getItem(FLAGS) || "[]"));
    for (let i = 0; names.size && i < count; i++) {
      column.flagged[i] = Number(names.has(rowName(i)));
    }
  }

  function answer(i) {
    const made = element("div", "answer");
    made.append(head(i), textBox(strings[column.text[i]]));
    if (why(i)) made.append(element("div", "small soft", why(i)));
    return made;
  }

  // What both behaviors say to the prompt of a row.
  function referenceBoxes(i) {
    const said = references[column.prompt[i]] || [];
    return said.map((k, place) => {
      const made = element("div", "answer reference");
      const title = ["initial", "alternate"][place];
      made.append(element("div", "head", `reference: ${title}`));
      made.append(textBox(strings[k]));
      return made;
    });
  }

  function beside(i) {
    const arm = at("beside-arm").value, step = at("beside-step").value;
    if (arm === "none") return [];
    const fits = (wish, mine, value) =>
      wish === "every" || value === (wish === "same" ? mine : Number(wish));
    return byPrompt.get(promptKey(i)).filter(
      (k) =>
        k !== i &&
        fits(arm, column.arm[i], column.arm[k]) &&
        fits(step, column.step[i], column.step[k]),
    );
  }

  function detail() {
    const prompt = at("prompt"), answers = at("answers");
    prompt.replaceChildren();
    answers.replaceChildren();
    at("beside-step").disabled = at("beside-arm").value === "none";
    if (!shown.length) {
      prompt.append(element("p", "soft", "No answer passes the filters."));
      return;
    }
    const i = shown[chosen];
    const title = element("div", "head", `${strings[column.split[i]]} prompt `);
    append(title, piece(strings[column.id[i]], 0, 400));
    title.append(
      " ",
      button(column.flagged[i] ? "take the flag off" : "flag", () => flag(i)),
      " ",
      button("copy as JSON", (event) =>
        copy(JSON.stringify(record(i)), event.target)),
    );
    prompt.append(title);
    for (const [role, said] of prompts[column.prompt[i]]) {
      const box = textBox(strings[said]);
      box.prepend(element("span", "soft", `${strings[role]}: `));
      prompt.append(box);
    }
    const others = beside(i);
    answers.append(answer(i), ...others.slice(0, MAX_BESIDE).map(answer));
    if (others.length > MAX_BESIDE) {
      const rest = others.length - MAX_BESIDE;
      answers.append(element("p", "soft", `And ${rest} more.`));
    }
    answers.append(...referenceBoxes(i));
  }

  function choose(place) {
    chosen = Math.max(0, Math.min(shown.length - 1, place));
    const top = chosen * ROW_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    const low = top + ROW_HEIGHT - list.clientHeight;
    if (low > list.scrollTop) list.scrollTop = low;
    draw();
    detail();
    remember();
  }

  function update(row) {
    filter();
    const sums = `${CHARS.format(shown.length)} of ${CHARS.format(count)}`;
    at("count").textContent = `${sums} answers.`;
    draw(); // the height first, so that the list can scroll
    choose(Math.max(0, row === undefined ? 0 : shown.indexOf(row)));
  }

  // --- the address holds the state, for a link and for a page that reloads -----

  const CONTROLS = [...facets, "order", "beside-arm", "beside-step"];
  const told = {
    run: (value) => runs[value],
    arm: (value) => `${arms[value].run}/${arms[value].name}`,
    "beside-arm": (v) => (isNaN(v) ? v : told.arm(v)),
  };
  const tell = (control, value) =>
    told[control]
      ? told[control](value)
      : facets.includes(control) && control !== "step"
        ? name(control, Number(value))
        : value;
  const rowName = (i) =>
    [column.arm, column.step].map((c) => c[i]).join("/") +
    `/${strings[column.split[i]]}/${strings[column.id[i]]}`;

  let timer = 0;
  function remember() {
    if (!ready) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      const state = new URLSearchParams();
      for (const control of CONTROLS) {
        const value = at(control).value;
        if (value && at(control).selectedIndex > 0) {
          state.set(control, tell(control, value));
        }
      }
      if (at("q").value) state.set("q", at("q").value);
      if (shown.length) state.set("row", rowName(shown[chosen]));
      history.replaceState(null, "", `#browse&${state}`);
    }, 250);
  }

  // Sets what the address says, as far as it is still there.
  function recall() {
    if (!location.hash.startsWith("#browse&")) return undefined;
    const state = new URLSearchParams(location.hash.slice(8));
    for (const control of CONTROLS) {
      const wish = state.get(control);
      for (const made of at(control).options) {
        if (wish !== null && made.value !== "" &&
            String(tell(control, made.value)) === wish) {
          at(control).value = made.value;
        }
      }
    }
    at("q").value = state.get("q") || "";
    root.scrollIntoView();
    const row = state.get("row");
    for (let i = 0; i < count; i++) if (rowName(i) === row) return i;
    return undefined;
  }

  function clear() {
    for (const facet of facets) at(facet).value = "";
    at("q").value = "";
  }

  // --- events ------------------------------------------------------------------

  const root = document.getElementById("browse");
  let ready = false;
  let typing = 0;
  for (const facet of [...facets, "order"]) {
    at(facet).addEventListener("change", () => update());
  }
  for (const side of ["beside-arm", "beside-step"]) {
    at(side).addEventListener("change", () => {
      detail();
      remember();
    });
  }
  at("q").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(update, 120);
  });
  at("clear").addEventListener("click", () => {
    clear();
    update();
  });
  at("copy").addEventListener("click", (event) => {
    const rows = [];
    column.flagged.forEach((on, i) => { if (on) rows.push(record(i)); });
    const lines = rows.map((row) => `${JSON.stringify(row)}\n`);
    copy(lines.join(""), event.target);
  });
  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  window.addEventListener("resize", draw);
  for (const link of document.querySelectorAll("a[data-arm]")) {
    link.addEventListener("click", () => {
      clear();
      at("arm").value = link.dataset.arm;
      update();
      list.focus({ preventScroll: true });
    });
  }

  function page() {
    return Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
  }
  const MOVES = {
    j: () => chosen + 1, ArrowDown: () => chosen + 1,
    k: () => chosen - 1, ArrowUp: () => chosen - 1,
    PageDown: () => chosen + page(), PageUp: () => chosen - page(),
    Home: () => 0, End: () => shown.length - 1,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const on = document.activeElement;
    // Keys belong to the browser while the focus is in it, or nowhere.
    if (on !== document.body && !root.contains(on)) return;
    const field = ["INPUT", "SELECT", "TEXTAREA"].includes(on.tagName);
    if (field) {
      const leave = event.key === "Escape" ||
        (on === at("q") && ["Enter", "ArrowDown"].includes(event.key));
      if (!leave) return;
      if (event.key !== "Escape" && typing) {
        clearTimeout(typing);
        update();
      }
      list.focus();
    } else if (event.key === "/") {
      at("q").focus();
      at("q").select();
    } else if (event.key === "f" && shown.length) {
      flag(shown[chosen]);
      list.focus();
    } else if (event.key in MOVES &&
        (on === list || event.key === "j" || event.key === "k")) {
      choose(MOVES[event.key]());
      list.focus();
    } else {
      return;
    }
    event.preventDefault();
  });

  at("wait").remove();
  at("tools").hidden = false;
  recallFlags();
  const row = recall();
  update(row);
  ready = true;
})();
