"""The pages in a real browser: no errors, every picture and plot visible, videos play, links lead somewhere, nothing too wide.

Skipped where there is no Chromium.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

# Put at the end of a copy of the page, without its Content-Security-Policy, which forbids scripts.
PROBE = """<pre id="probe"></pre><script>
addEventListener("load", async () => {
  const box = e => e.getBoundingClientRect();
  const videos = [...document.querySelectorAll("video")];
  for (const v of videos) v.scrollIntoView();
  await Promise.all(videos.map(v => v.play().catch(e => {})));
  await new Promise(done => setTimeout(done, 1500));
  document.querySelectorAll("details").forEach(d => d.open = true);
  document.getElementById("probe").textContent = JSON.stringify({
    images: [...document.images].map(i => [i.complete && i.naturalWidth > 0, box(i).width > 20]),
    plots: [...document.querySelectorAll("figure svg")].map(s => box(s).width > 100 && box(s).height > 50),
    videos: videos.map(v => [v.error === null, v.videoWidth > 0, v.currentTime > 0, box(v).width > 20]),
    dangling: [...document.querySelectorAll("a[href^='#']")].map(a => a.hash.slice(1))
      .filter(id => !document.getElementById(id)),
    elsewhere: [...document.querySelectorAll("[src]:not([src^='data:']), link, iframe")].length,
    page: document.documentElement.scrollWidth, window: innerWidth,
    background: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  });
});
</script></body>"""


def look(page, tmp_path, *, width=1000, dark=False):
    """What the browser makes of a page: what the probe found, and its console."""
    text = page.read_text(encoding="utf-8")
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert without_policy != text
    (tmp_path / "page.html").write_text(without_policy.replace("</body>", PROBE), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--autoplay-policy=no-user-gesture-required", "--enable-logging=stderr", f"--window-size={width},900"]
    command += ["--virtual-time-budget=20000", "--dump-dom", *(["--blink-settings=preferredColorScheme=0"] if dark else [])]
    ended = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (found,) = re.findall(r'<pre id="probe">(.*?)</pre>', ended.stdout, re.DOTALL)
    return json.loads(html.unescape(found)), [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(finished):
    (path,) = finished.glob("artifacts/evaluate/*/report.html")
    return path


@pytest.mark.parametrize("width", [1000, 500])
def test_the_report(report, tmp_path, width):
    """As wide as a screen, and as narrow as the browser's window gets."""
    found, console = look(report, tmp_path, width=width)
    assert console == []
    assert found["images"], "pictures of slots"
    assert all(all(facts) for facts in found["images"])
    assert len(found["plots"]) > 5
    assert all(found["plots"])
    assert found["videos"]
    assert all(all(facts) for facts in found["videos"])
    assert (found["dangling"], found["elsewhere"]) == ([], 0)
    assert found["page"] <= found["window"], "wide tables scroll by themselves"


def test_the_policy_of_the_page_itself(report, tmp_path):
    """As it is, with its policy: nothing that it shows is refused."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", report.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert [line for line in ended.stderr.splitlines() if "CONSOLE" in line] == []


def test_a_fault_would_be_seen(report, tmp_path):
    """The probe itself: a broken picture, an unknown anchor and an error of a script are found."""
    broken = tmp_path / "broken.html"
    faults = '<img src="data:image/png;base64,AAAA" width="50"><a href="#nowhere">x</a><script>missing()</script>'
    broken.write_text(report.read_text(encoding="utf-8").replace("</main>", f"{faults}</main>"), encoding="utf-8")
    (tmp_path / "in").mkdir()
    found, console = look(broken, tmp_path / "in")
    assert found["images"][-1] == [False, True]
    assert found["dangling"] == ["nowhere"]
    assert any("missing is not defined" in line for line in console)


def test_runs_side_by_side(physion, finished, tmp_path):
    page = tmp_path / "side.html"
    ended = physion("compare", f"{finished}@", f"{finished}@", "--report", page)
    assert ended.code == 0, ended.err
    (tmp_path / "in").mkdir()
    found, console = look(page, tmp_path / "in")
    assert (console, found["dangling"], found["elsewhere"]) == ([], [], 0)
    assert len(found["plots"]) == 3
    assert all(found["plots"])
    assert found["page"] <= found["window"]
