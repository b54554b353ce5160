"""The voting page of the human study, as study.py fills it in. Fields are marked @NAME@."""

PAGE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which picture looks more natural?</title>
<link rel="icon" href="data:,">
<style>
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 980px; padding: 22px 16px 40px; color: #1d2026; text-align: center;
  font: 17px/1.5 system-ui, "Segoe UI", Roboto, sans-serif }
h1 { font: 600 1.5rem/1.25 Charter, Georgia, "DejaVu Serif", serif; margin: 0 0 14px }
button { font: inherit; cursor: pointer; padding: 8px 20px; border: 1px solid #c3cad6; border-radius: 6px;
  background: #fff }
button.main { background: #1f5fa8; border-color: #1f5fa8; color: #fff }
#pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; margin-bottom: 14px }
#pair button { padding: 5px; border-width: 2px }
#pair button:hover, #pair button:focus-visible { border-color: #1f5fa8; outline: none }
#pair img { display: block; width: 100%; aspect-ratio: 1 }
progress { width: 100%; height: 6px; margin-bottom: 16px; accent-color: #1f5fa8 }
p { max-width: 34em; margin: 10px auto }
.soft { color: #667080; font-size: .9rem }
[hidden] { display: none !important }
</style>
</head>
<body>
<section id="start">
<h1>@QUESTION@</h1>
<p>You will see pairs of pictures, some real and some made by a computer. Choose the one that looks more natural;
your first impression is what counts. It takes a few minutes.</p>
<p><button type="button" class="main" id="begin">Start</button></p>
</section>
<section id="vote" hidden>
<h1>@QUESTION@</h1>
<progress value="0"></progress>
<div id="pair">
<button type="button" data-choice="left"><img alt="left picture"></button>
<button type="button" data-choice="right"><img alt="right picture"></button>
</div>
<p id="tie"><button type="button" data-choice="tie">I cannot tell</button></p>
<p class="soft">Click a picture, or use the keys ← and →<span class="tie-key"> (↓ = cannot tell)</span>.</p>
</section>
<section id="end" hidden>
<h1>Thank you!</h1>
<p>Please save your answers and send the file to whoever gave you this page.</p>
<p><button type="button" class="main" id="save">Save the answers</button></p>
</section>
<script type="application/json" id="study">@DATA@</script>
<script>
"use strict";
const study = JSON.parse(document.getElementById("study").textContent);
const byId = id => document.getElementById(id);
const PLACE = "votes-" + study.id;  // where a reload finds the answers so far
const COLUMNS = ["study", "voter", "pair", "left", "right", "choice", "seconds"];

function shuffled(items) {
  const out = [...items];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

function fresh() {
  const swap = Math.random() < 0.5;  // half of the voters see every pair mirrored
  const pairs = shuffled(study.pairs.map((p, i) => ({pair: i, left: p[swap ? 1 : 0], right: p[swap ? 0 : 1]})));
  return {voter: Math.random().toString(36).slice(2, 12), pairs: pairs.slice(0, study.per_voter), votes: []};
}

function stored() {
  try { return JSON.parse(localStorage.getItem(PLACE)); } catch (error) { return null; }  // forbidden for some files
}
let session = stored() || fresh(), shownAt = 0;
function store() {
  try { localStorage.setItem(PLACE, JSON.stringify(session)); } catch (error) { /* then a reload starts anew */ }
}

function only(id) { for (const s of ["start", "vote", "end"]) byId(s).hidden = s !== id; }

function next() {
  const at = session.votes.length;
  if (at >= session.pairs.length) { only("end"); return; }
  only("vote");
  document.querySelector("progress").value = at / session.pairs.length;
  const pair = session.pairs[at];
  for (const side of ["left", "right"]) {
    document.querySelector(`[data-choice=${side}] img`).src = "images/" + pair[side] + ".png";
  }
  document.activeElement.blur();
  shownAt = performance.now();
}

function vote(choice) {
  const seconds = ((performance.now() - shownAt) / 1000).toFixed(2);
  session.votes.push({study: study.id, voter: session.voter, ...session.pairs[session.votes.length], choice, seconds});
  store();
  next();
}

function csv() {
  return [COLUMNS, ...session.votes.map(v => COLUMNS.map(c => v[c]))].map(line => line.join(",")).join("\n") + "\n";
}

byId("begin").addEventListener("click", next);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => vote(button.dataset.choice));
}
addEventListener("keydown", event => {
  const choice = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie"}[event.key];
  if (!choice || event.repeat || byId("vote").hidden || (choice === "tie" && !study.ties)) return;
  event.preventDefault();
  vote(choice);
});
byId("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
  link.download = "votes-" + study.id + "-" + session.voter + ".csv";
  link.click();
});
byId("tie").hidden = document.querySelector(".tie-key").hidden = !study.ties;
if (session.votes.length) next();
</script>
</body>
</html>
"""
