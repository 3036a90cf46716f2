# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: headless Chromium, skipped where there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from nnunet_dhc.reporting.render_html import render_html

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
                if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")

# Runs after the page's own script, uses its controls as a person would, and leaves what it saw in the document.
_PROBE = """
<script>
const seen = {errors: window.seenErrors};
const dots = () => [...document.querySelectorAll(".field")].map((field) => [...field.querySelectorAll(".dot")]);
const choose = (id, value) => {
  const item = document.getElementById(id);
  if (item.type === "checkbox") item.checked = value; else item.value = value;
  item.dispatchEvent(new Event("change"));
};
seen.width = document.documentElement.scrollWidth <= window.innerWidth;
seen.rows = dots().length;
seen.tabStops = document.querySelectorAll('.dot[tabindex="0"]').length;
seen.before = dots()[3].map((dot) => dot.style.left);
choose("choose-structure", "2");
seen.structure = dots()[3].map((dot) => dot.style.left);
seen.label = dots()[3][1].getAttribute("aria-label");
choose("choose-structure", "mean");
choose("choose-difference", true);
seen.baseline = new Set(dots()[0].map((dot) => dot.style.left)).size;
choose("choose-difference", false);
dots()[0][2].focus();
seen.hint = document.getElementById("hint").textContent;
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
press("ArrowDown");
seen.sameCase = document.activeElement.dataset.case;
press("Home");
seen.focused = document.activeElement.classList.contains("dot");
document.activeElement.click();
const detail = document.getElementById("case-detail");
seen.detail = [detail.hidden, detail.querySelectorAll("tbody tr").length];
const labels = document.getElementById("show-labels");
labels.checked = false;
labels.dispatchEvent(new Event("change"));
seen.hiddenLayer = getComputedStyle(document.querySelector(".stack img + img")).visibility;
const tab = document.getElementById("cards-2");
tab.checked = true;
seen.panels = [...document.querySelectorAll("#structures .panel")].map((panel) => getComputedStyle(panel).display);
seen.bar = document.querySelector("#structures .fill").style.width;
const result = document.createElement("pre");
result.id = "seen";
result.textContent = JSON.stringify(seen);
document.body.append(result);
</script>
"""


def _see(page, tmp_path, width=1280):
    page = page.replace("<head>", "<head><script>window.seenErrors = []; window.onerror = (message) => "
                                  "window.seenErrors.push(String(message));</script>")
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", _PROBE + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


@pytest.mark.parametrize("width", [1280, 500])
def test_the_controls_work_and_nothing_overflows(comparison, tmp_path, width):
    seen = _see(render_html(comparison), tmp_path, width)
    assert seen["errors"] == []
    assert seen["width"]
    assert seen["rows"] == seen["tabStops"] == 4
    assert seen["before"] != seen["structure"]
    assert "patient_01" in seen["label"]
    assert seen["baseline"] == 1  # the baseline differs from itself by nothing
    assert seen["hint"].startswith("patient_02: nnUNetTrainer ")
    assert seen["sameCase"] == "2"
    assert seen["focused"]
    assert seen["detail"] == [False, 4]  # the mean and three structures
    assert seen["hiddenLayer"] == "hidden"
    assert seen["panels"] == ["none", "block", "none"]
