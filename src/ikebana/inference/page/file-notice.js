// Browsers load no modules, workers or models from file:// URLs. This classic script shows the remedy.

if (location.protocol === "file:") {
  const about = document.getElementById("about");
  const command = document.createElement("code");
  command.textContent = "python3 -m http.server 8000";
  about.replaceChildren(
    "Browsers run this page only from a web server. In the folder of this page, run ",
    command,
    " and open localhost:8000 in the browser.",
  );
  about.classList.add("error");
  document.getElementById("drop").hidden = true;
}
