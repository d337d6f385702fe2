"""What tests of reports share: the settings of a run, and a page that is taken apart."""

from html.parser import HTMLParser

from omegaconf import DictConfig, OmegaConf

from cbm.config import ConceptsConfig, DatasetConfig, EncoderConfig, TrainConfig


def configuration(method: str = "labo") -> DictConfig:
    return OmegaConf.merge(
        OmegaConf.structured(TrainConfig),
        {
            "dataset": DatasetConfig(name="folder", reader="folder", root="my pictures"),
            "encoder": EncoderConfig(model="ViT-B-32-quickgelu", pretrained="openai"),
            "concepts": ConceptsConfig(source="concepts/birds.json"),
            "method": {"name": method},
            "shots": 4,
        },
    )


class Page(HTMLParser):
    """Headings, what the page asks for from elsewhere, and whether every tag is closed."""

    VOID = ("meta", "img", "input", "link", "br", "line", "path")

    def __init__(self, html: str):
        super().__init__()
        self.sections: list[str] = []
        self.asked: list[str] = []
        self.alts: list[str | None] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "h2":
            self.sections.append(values["id"])
        self.asked += [values[key] for key in ("src", "href", "xlink:href", "data", "action") if key in values]
        if tag == "img":
            self.alts.append(values.get("alt"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)
