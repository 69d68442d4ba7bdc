"""Where the glyphs come from: fonts of Chinese characters inside npm packages, each drawn by another hand.

Their licences are listed in LICENSES.md, next to this file.
"""

from dataclasses import dataclass

from selector_tools.datasets.npm import Package


@dataclass(frozen=True)
class Family:
    """A font drawn by one hand."""

    name: str
    package: Package
    path: str  # of the font file inside the package
    licence: str  # of the font as the package states it
    held_out: bool = False  # kept whole for the evaluation


def _family(
    name: str, version: str, font: str, integrity: str, licence: str = "OFL-1.1", held_out: bool = False
) -> Family:
    package = Package(f"@expo-google-fonts/{name}", version, f"sha512-{integrity}")
    return Family(name, package, f"400Regular/{font}_400Regular.ttf", licence, held_out)


FAMILIES = (
    _family(
        "cactus-classical-serif",
        "0.4.5",
        "CactusClassicalSerif",
        "oVroqVwt+BXDXYooJfNiGuSKBoo3tyTCY+YAv748t+ANl+MZmpvfsP0dWFLNj8DcFr20UW6sVALrsSq/huax6g==",
    ),
    _family(
        "dela-gothic-one",
        "0.4.1",
        "DelaGothicOne",
        "+SqDc2MBfQdDeTsVZs8cw0QL5plZgTTyuZerkiwZVwoygG+//WMrOZ/d2QC37DlJWRNN69MVSNqo3d9xg0iunw==",
    ),
    _family(
        "hachi-maru-pop",
        "0.4.1",
        "HachiMaruPop",
        "Aay9Y5BoFgYky0ctL9envPSjIPyVQN7eNBekPtL96b7f8n0vF91ZyhaP4DXZvdw36ZuvfW4ANX57kBeNFzAg+A==",
    ),
    _family(
        "klee-one",
        "0.4.1",
        "KleeOne",
        "3hMj7H5o3mD6lNPPPew1dezDVe1T+CzxSnNfH0UxdOHhxYSbbnFWPNv5CjCgf7w3zJLLuvE4a9NLEUOE/5FpOQ==",
        held_out=True,
    ),
    _family(
        "kosugi-maru",
        "0.4.1",
        "KosugiMaru",
        "9qVOiqDFUaDtOpfyNkrgKzKOmUZSgjEEaPKt2RyeQDb1/WQR6uoJjPILi8Vxw46Se+NfMJvHWB2jzE9Y0BoZ0w==",
        licence="Apache-2.0",
        held_out=True,
    ),
    _family(
        "ma-shan-zheng",
        "0.4.3",
        "MaShanZheng",
        "takX5zcbMlLsCmCVtosX8/djtQ/lrKbbppcLAoukTmeEf94UFsHyOYuXtRi+XNh5Ts2tZDZUz2aWO4/4Z1uPjQ==",
    ),
    _family(
        "yuji-mai",
        "0.4.1",
        "YujiMai",
        "wem3cIX8e8QgLJILK5++2o8bfY3zldBrEkIktuAiC9jKyRJ0fhUoGzxYj6h1ARkvypSmNXn6GWSiIfXxiwxDkg==",
        held_out=True,
    ),
    _family(
        "zcool-kuaile",
        "0.4.2",
        "ZCOOLKuaiLe",
        "KkcHLXsOWzINR2ezf3bPpn4ePATD5JmG31Lif9/N1YkC1ZRyscwB3B5OV4svMjNtz5EE9XcK04JiIYfMAzUd3A==",
    ),
    _family(
        "zcool-qingke-huangyou",
        "0.4.1",
        "ZCOOLQingKeHuangYou",
        "7LRAXUkg7/BGuVfYQtyZqSE77f0W8YMq4C4dnub9BM68I+57P+I1Su7XGPqVe8aS6ET9VZjIqYuHx29b6s4Dyw==",
    ),
    _family(
        "zcool-xiaowei",
        "0.4.1",
        "ZCOOLXiaoWei",
        "UshFhpSWZq9hhultiV3IwqyRimKQEJd1yCCBTBCF8gU5B5OMEMXFJcaVdy4D1jD5R30QvTnmhGOA94116mqQ1g==",
        held_out=True,
    ),
    _family(
        "zhi-mang-xing",
        "0.4.1",
        "ZhiMangXing",
        "5/Awkq/eZ+uePBZ7QnJphWGu68zbDibH/kaWdDogiLkJGaa28CreTpE95ckyE7eJGzK8m6MDJhkVzHVpwIcpzQ==",
    ),
)
