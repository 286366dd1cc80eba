// Enlarged photos, copied paths, and decisions that become cleaned.csv. Names are set as text only.
"use strict";
(() => {
  const find = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, text = "") => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.textContent = text;
    return element;
  };
  const status = document.getElementById("status");

  // Photos in a dialog: click, Enter or Space; arrow keys show the next one.
  const viewer = document.getElementById("viewer");
  const data = document.getElementById("table");
  const table = data && JSON.parse(data.textContent);
  const images = find("main img");
  const enlarged = make("img");
  viewer.querySelector("form").after(enlarged);
  let shown = 0;
  const show = (index) => {
    shown = (index + images.length) % images.length;
    const source = images[shown];
    enlarged.src = source.src;
    enlarged.alt = source.alt;
    viewer.querySelector("p").textContent = source.alt;
    // The file itself, if this page lies on the same computer and its folder is known.
    const { row } = source.closest("figure")?.dataset ?? {};
    const link = viewer.querySelector("a");
    link.hidden = !(row && location.protocol === "file:" && table.root.startsWith("/"));
    if (!link.hidden) link.href = "file://" + (table.root + table.rows[row][0]).split("/").map(encodeURIComponent).join("/");
    if (!viewer.open) viewer.showModal();
  };
  images.forEach((image, index) => {
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.setAttribute("aria-haspopup", "dialog");
    image.addEventListener("click", () => show(index));
    image.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      show(index);
    });
  });
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(shown + step);
  });
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });

  // Paths are copied with a click.
  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = `copied: ${text}`;
      button.classList.add("copied");
      setTimeout(() => button.classList.remove("copied"), 1200);
    } catch {
      getSelection().selectAllChildren(button);
      status.textContent = "selected: copy it with Ctrl+C";
    }
  };
  find("figcaption .path, pre.command").forEach((element) => {
    const text = element.textContent.trim();
    const button = make("button", { type: "button", title: "Copy" }, text);
    button.className = element.className;
    button.addEventListener("click", () => copy(text, button));
    element.replaceWith(button);
  });

  // A link into a folded section opens it.
  const unfold = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    const section = id && document.getElementById(id);
    if (section) find("details.kind", section).forEach((details) => (details.open = true));
  };
  addEventListener("hashchange", unfold);
  unfold();
  const fold = document.getElementById("fold");
  fold.hidden = false;
  fold.addEventListener("click", () => {
    const all = find("details.kind");
    const open = !all.some((details) => details.open);
    all.forEach((details) => (details.open = open));
    fold.textContent = open ? "Fold all" : "Unfold all";
  });

  // Decisions by row of the table; the same photo may be on several cards.
  if (!table) return;
  const memory = `ikebana-audit-decisions ${table.key}`;
  let decisions = new Map();
  try {
    decisions = new Map(JSON.parse(localStorage.getItem(memory) || "[]"));
  } catch {
    // Without a memory, decisions last until the page is closed.
  }
  const labelOf = (row) => table.rows[row][1];
  const controls = new Map();
  const bar = document.getElementById("review");

  const isSame = (first, second) => first?.action === second.action && first.label === second.label;
  const build = (figure) => {
    const row = Number(figure.dataset.row);
    const suggested = figure.dataset.suggested;
    const isCopy = "copy" in figure.dataset;
    const name = `the photo ${table.rows[row][0]}`;
    const box = make("div", { className: "decide" });
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Your decision on ${name}`);
    const choices = [[isCopy ? "keep" : `keep ${labelOf(row)}`, { action: "keep" }]];
    if (suggested) choices.push([`change to ${suggested}`, { action: "change", label: suggested }]);
    choices.push(["remove", { action: "remove" }]);
    const buttons = choices.map(([words, decision]) => {
      const button = make("button", { type: "button" }, words);
      button.addEventListener("click", () => {
        if (isSame(decisions.get(row), decision)) decisions.delete(row);
        else decisions.set(row, decision);
        update();
      });
      box.append(button);
      return [button, decision];
    });
    const select = isCopy ? null : makeSelect(row, name, suggested);
    if (select) box.append(select);
    figure.append(box);
    if (!controls.has(row)) controls.set(row, []);
    controls.get(row).push({ buttons, select });
  };
  // Any other class; the suggested one has a button.
  const makeSelect = (row, name, suggested) => {
    const labels = table.classes.filter((label) => label !== labelOf(row) && label !== suggested);
    if (!labels.length) return null;
    const select = make("select");
    select.setAttribute("aria-label", `The right label of ${name}`);
    select.append(make("option", { value: "" }, suggested ? "another label…" : "change to…"));
    for (const label of labels) select.append(make("option", { value: label }, label));
    select.addEventListener("change", () => {
      if (select.value) decisions.set(row, { action: "change", label: select.value });
      else decisions.delete(row);
      update();
    });
    return select;
  };
  const reviewed = find("figure[data-row]");
  reviewed.forEach(build);
  bar.hidden = !reviewed.length;
  find(".scripted").forEach((element) => (element.hidden = !reviewed.length));

  const count = (action) => [...decisions.values()].filter((decision) => decision.action === action).length;
  const update = () => {
    for (const [row, boxes] of controls) {
      const decision = decisions.get(row) || {};
      for (const { buttons, select } of boxes) {
        for (const [button, choice] of buttons) {
          button.setAttribute("aria-pressed", String(isSame(decision, choice)));
        }
        if (!select) continue;
        select.value = decision.label || "";
        // The suggested label is no option: it has a button.
        if (select.selectedIndex < 0) select.selectedIndex = 0;
        select.classList.toggle("chosen", select.selectedIndex > 0);
      }
    }
    const total = decisions.size;
    for (const id of ["download", "discard"]) document.getElementById(id).disabled = !total;
    bar.querySelector("p").textContent = total
      ? `${total} decided: ${count("keep")} kept, ${count("change")} changed, ${count("remove")} removed`
      : "No decisions yet";
    try {
      localStorage.setItem(memory, JSON.stringify([...decisions]));
    } catch {
      // As above.
    }
  };
  update();

  const quote = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const toTable = () => {
    const lines = [table.columns];
    table.rows.forEach((row, index) => {
      const { action, label } = decisions.get(index) || {};
      if (action === "remove") return;
      const values = [table.root + row[0], ...row.slice(1)].map((value) => value ?? "");
      if (label) {
        values[1] = label;
        values[values.length - 1] = `was ${row[1]}: reviewed`;
      }
      lines.push(values);
    });
    return lines.map((line) => line.map((value) => quote(String(value))).join(",") + "\n").join("");
  };
  document.getElementById("download").addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([toTable()], { type: "text/csv" }));
    make("a", { href: address, download: "cleaned.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    status.textContent = "cleaned.csv was downloaded";
  });
  document.getElementById("discard").addEventListener("click", () => {
    decisions.clear();
    update();
  });
})();
