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
  const memory = `ikebana-audit ${table.key}`;
  let decisions = new Map();
  try {
    decisions = new Map(JSON.parse(localStorage.getItem(memory) || "[]"));
  } catch {
    // Without a memory, decisions last until the page is closed.
  }
  const labelOf = (row) => table.rows[row][1];
  const controls = new Map();
  const bar = document.getElementById("review");

  const build = (figure) => {
    const row = Number(figure.dataset.row);
    const suggested = figure.dataset.suggested;
    const name = `the photo ${table.rows[row][0]}`;
    const box = make("div", { className: "decide" });
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Your decision on ${name}`);
    const buttons = {};
    for (const [action, word] of [["right", "right"], ["wrong", "wrong"], ["remove", "remove"]]) {
      buttons[action] = make("button", { type: "button" }, word);
      buttons[action].addEventListener("click", () => {
        const same = (decisions.get(row) || {}).action === action;
        if (same) decisions.delete(row);
        else decisions.set(row, action === "wrong" ? { action, label: suggested || "" } : { action });
        update();
      });
      box.append(buttons[action]);
    }
    const select = make("select");
    select.setAttribute("aria-label", `The right label of ${name}`);
    select.append(make("option", { value: "" }, "it is…"));
    for (const label of table.classes) {
      if (label !== labelOf(row)) select.append(make("option", { value: label }, label));
    }
    select.addEventListener("change", () => {
      decisions.set(row, { action: "wrong", label: select.value });
      update();
    });
    box.append(select);
    figure.append(box);
    if (!controls.has(row)) controls.set(row, []);
    controls.get(row).push({ buttons, select });
  };
  find("figure[data-row]").forEach(build);

  const count = (test) => [...decisions.values()].filter(test).length;
  const update = () => {
    for (const [row, boxes] of controls) {
      const decision = decisions.get(row) || {};
      for (const { buttons, select } of boxes) {
        for (const [action, button] of Object.entries(buttons)) {
          button.setAttribute("aria-pressed", String(decision.action === action));
        }
        select.hidden = decision.action !== "wrong";
        select.value = decision.label || "";
      }
    }
    const open = count((decision) => decision.action === "wrong" && !decision.label);
    bar.hidden = !decisions.size;
    bar.querySelector("p").textContent =
      `${decisions.size} decided: ${count((decision) => decision.label)} relabelled, ` +
      `${count((decision) => decision.action === "remove")} removed, ` +
      `${count((decision) => decision.action === "right")} right` +
      (open ? `. ${open} without a new label will stay as ${open === 1 ? "it is" : "they are"}` : "");
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
