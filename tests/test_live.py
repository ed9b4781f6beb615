"""live.html, which is opened where there is a chromium."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

from fashion import live
from fashion.data import CLASSES, normalize

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

MARKUP = "</script><b id=injected>"
OPTIONS = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-sync --dump-dom"
ACTIONS = """
const act = (id, change) => { change(byId(id)); draw(); return Array.from(picture); };
const shown = { check: byId("check").textContent, injected: byId("injected") };
choose(2);
act("right", slider => { slider.value = 4; slider.dispatchEvent(new Event("input")); });
shown.answers = Array.from(document.querySelectorAll("tbody tr"), row => row.innerText);
for (const setting of SETTINGS)
  shown[setting] = act("picture", () => choose(2, new URLSearchParams(setting)));
document.querySelector("[value=erase]").click();
choose(2);
const { left, top, width } = byId("picture").getBoundingClientRect();
const move = (x, y) => new PointerEvent("pointermove", { buttons: 1, clientX: x, clientY: y });
for (const share of [0.4, 0.6]) shown.erased = act("picture", canvas =>
  canvas.dispatchEvent(move(left + share * width, top + width / 2)));
shown.reset = act("reset", button => button.click());
point(insides[1], insides[1].views[1], 3, 10, 12);
shown.lens = insides[1].lens.innerText;
point(insides[1], insides[1].views.at(-1), 4, 0, 0);
shown.logit = insides[1].lens.innerText;
shown.fields = PLACES.map(place => findField(networks[2].layers, insides[2].values, 9, place));
document.querySelector("[value=paint]").click();
act("empty", button => button.click());
shown.painted = act("picture", canvas =>
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" })));
shown.address = location.hash;
const third = networks.pop();
find("right");
shown.found = byId("found").textContent;
networks.push(third);
document.body.replaceChildren(JSON.stringify(shown));
"""
SETTINGS = {
    "right=-2&down=3": lambda image: np.pad(image, ((3, 0), (0, 2)))[:28, 2:],
    "rotation=90&contrast=50": lambda image: np.rot90(image, -1) / 2,
    "blur=1.5": lambda image: gaussian_filter(image, 1.5, mode="constant", truncate=9),
}


PLACES = [[0, 0], [2, 3], [7, 6]]  # of values behind the pooling of the unusual network


class Unusual(nn.Sequential):
    """Layers that the page knows and the CNN lacks, and optionally a skip that it does not."""

    def __init__(self, skip=0.0):
        super().__init__(
            *(nn.Conv2d(1, 6, (5, 3), stride=(2, 1), padding=(3, 0)), nn.SiLU(), nn.GELU()),
            *(nn.AvgPool2d(3, 2, 1), nn.LeakyReLU(0.2), nn.Dropout(), nn.Tanh()),
            *(nn.Sequential(nn.Conv2d(6, 7, 3, padding="same"), nn.ELU(0.7)),),
            *(nn.MaxPool2d(3, (1, 2), 1), nn.Linear(392, 9), nn.BatchNorm1d(9), nn.Sigmoid()),
            nn.Linear(9, 10),
        )
        self.skip = skip

    def forward(self, images):
        values = images
        for layer in self:
            values = layer(values.flatten(1) if isinstance(layer, nn.Linear) else values)
        return values + self.skip * images.mean()


def content(path):
    return json.loads(re.search(r'id="data">(.*)</script>', path.read_text())[1])


def predict(networks, dataset):
    return torch.stack([n.logits(dataset.test_images).argmax(1) for n in networks.values()])


def test_choice(networks, tiny):
    ffn, cnn = answers = predict(networks, tiny)
    chosen = live.choose(answers, tiny.test_labels)
    assert tiny.test_labels[chosen].tolist() == [label for label in range(10) for _ in range(4)]
    assert len(chosen.unique()) == 40
    disagree = torch.bincount(tiny.test_labels[ffn != cnn], minlength=10).clamp(max=2)
    assert ((ffn != cnn)[chosen].view(10, 4).sum(1) == disagree).all()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), None),
        (Unusual(skip=1.0), "forward"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softplus()), "Softplus"),
        (nn.Sequential(nn.MaxPool2d(3, ceil_mode=True), nn.Flatten(), nn.Linear(100, 10)), "ceil"),
    ],
)
def test_layers(model, reason, networks, tiny, tmp_path):
    path, answers = tmp_path / "live.html", predict(networks, tiny)
    network = replace(networks["cnn"], name="mine", model=model.eval())
    lines = live.write(path, {**networks, "mine": network}, answers, tiny)
    data = content(path)
    assert len(data["networks"]) == (2 if reason else 3)
    assert data["omitted"] == lines
    assert not lines if reason is None else "MINE" in lines[0] and reason in lines[0]


def test_page(networks, tiny, tmp_path):
    if not (chromium := shutil.which("chromium")):
        pytest.skip("needs chromium")
    unusual = replace(networks["cnn"], name=MARKUP, model=Unusual().eval())
    page, profile = tmp_path / "live.html", tmp_path / "profile"
    assert live.write(page, {**networks, MARKUP: unusual}, predict(networks, tiny), tiny) == []
    image = tiny.test_images[content(page)["indices"][2]]
    constants = f"const SETTINGS = {json.dumps(list(SETTINGS))}, PLACES = {PLACES};"
    script = f"<script>{{ {constants} {ACTIONS} }}</script>"
    page.write_text(page.read_text().replace("</html>", script))
    command = [chromium, *OPTIONS.split(), f"--user-data-dir={profile}", f"{page.as_uri()}#check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    body = re.search(r"<body>(.*)</body>", result.stdout, re.DOTALL)[1]
    shown = json.loads(html.unescape(body))
    pattern = r"largest difference (\S+), 40 images, (\S+) ms per image"
    difference, _ = re.fullmatch(pattern, shown["check"]).groups()
    assert float(difference) < 2e-5
    assert shown["injected"] is None
    shifted = nn.functional.pad(image, (4, 0))[None, :, :28]
    expected = [100 * network.probabilities(shifted)[0] for network in networks.values()]
    percentages = [re.findall(r"(\d+)\s%", row)[:2] for row in shown["answers"]]
    assert np.abs(np.array(percentages, float) - torch.stack(expected, 1).numpy()).max() < 1
    for setting, change in SETTINGS.items():
        expected = change(image.numpy().astype(float))
        assert np.abs(np.reshape(shown[setting], (28, 28)) - expected).max() < 1, setting
    erased = np.reshape(shown["erased"], (28, 28))
    assert (erased[13:15, 11:17] == 0).all()
    assert (erased[:10] == image[:10].numpy()).all()
    assert shown["reset"] == image.flatten().tolist()
    inputs = normalize(image[None], networks["cnn"].mean, networks["cnn"].std)
    value = networks["cnn"].model.blocks[0][0](inputs)[0, 3, 10, 12].item()
    numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", shown["lens"].replace("−", "-"))]
    assert numbers[18] == pytest.approx(value, abs=0.01)
    assert np.dot(numbers[:9], numbers[9:18]) == pytest.approx(value, abs=0.1)  # rounded factors
    check_logit(shown["logit"], networks["cnn"], image)
    for place, field in zip(PLACES, shown["fields"], strict=True):
        assert field == find_field(list(unusual.model)[:9], place)
    painted = np.reshape(shown["painted"], (28, 28))  # one pixel right of where it was erased last
    assert painted[13, 17] > 200 and painted[:, :15].max() == painted[:12].max() == 0
    assert shown["address"] == ""  # the address asked for a check; other pictures were chosen since
    check_example(shown["found"], networks, tiny)


@torch.inference_mode()
def check_logit(text, network, image):
    *hidden, layer = network.model.classifier
    blocks = network.model.blocks(normalize(image[None], network.mean, network.std))
    products = layer.weight[4] * nn.Sequential(*hidden)(blocks)[0]
    unit = products.abs().argmax().item()
    assert text.startswith("Logit of Coat")
    first, *_, total = re.findall(r"-?\d+\.\d+", text.replace("−", "-"))
    assert f"sum: unit {unit} ({first})" in text.replace("−", "-")
    assert float(first) == pytest.approx(products[unit].item(), abs=0.01)
    assert float(total) == pytest.approx((products.sum() + layer.bias[4]).item(), abs=0.01)


def find_field(layers, place):
    """Return the rows and columns with a gradient: the first and their number."""
    images = torch.randn(50, 1, 28, 28, requires_grad=True)
    nn.Sequential(*layers)(images)[:, :, *place].sum().backward()
    reached = (images.grad != 0).any(0)[0]
    places = [reached.any(1).nonzero(), reached.any(0).nonzero()]
    return [[found.min().item(), len(found)] for found in places]


def check_example(text, networks, dataset):
    pattern = r"(.+), test image (\d+), shift right (\d+) px: only the (\w+) errs"
    label, index, size, name = re.match(pattern, text).groups()
    image, target = dataset.test_images[int(index)], CLASSES.index(label)
    assert dataset.test_labels[int(index)] == target
    for shift in range(int(size) + 1):
        shifted = nn.functional.pad(image, (shift, 0))[None, :, :28]
        wrong = [n.name for n in networks.values() if n.logits(shifted).argmax() != target]
        assert wrong == ([name.lower()] if shift == int(size) else [])
