"""Sets without an index whose patches were stored in the wrong place: D2 and D3 find each way, and are silent where
nothing is wrong.
"""

from __future__ import annotations

import numpy as np
import pytest

from dittool.audit.rules.D2_registers import by_content
from dittool.audit.rules.D3_alignment import verdict
from dittool.data.alignment import IDENTITY, Aligned
from dittool.data.crops import OwnWindows
from dittool.demo.drawing import draw_scene, plan_scenes
from dittool.geometry import buckets_for_area, nearest_bucket
from tests.audit.misplaced import MISPLACED, RANDOMLY_CROPPED, builtin_eyes, clean, colour_eyes, textured
from tests.audit.older import judge, pack
from tests.quick import every_third, others_slow

IMAGES = 64
BUCKETS = buckets_for_area((128, 128))


@pytest.fixture(scope="module")
def photographs():
    """Pictures as photographs are, in all buckets."""
    return [
        textured(number, BUCKETS[number % len(BUCKETS)].width, BUCKETS[number % len(BUCKETS)].height)
        for number in range(IMAGES)
    ]


@pytest.fixture(scope="module")
def drawings():
    """The demo's flat drawings."""
    pictures = [draw_scene(scene) for scene in plan_scenes(IMAGES, seed=0)]
    return [
        np.array(picture.resize((bucket.width, bucket.height)))
        for picture in pictures
        for bucket in [nearest_bucket(*picture.size, BUCKETS)]
    ]


@pytest.fixture(scope="module")
def eyes():
    return builtin_eyes()


@pytest.mark.parametrize(
    ("fault", "arrangement"),
    every_third(
        [
            ("registers stored as patches", "shifted by +4"),
            ("CLS stored as a patch", "shifted by +1"),
            ("centre crop for DINO", "centre crop of 0.875"),
            ("mirrored for DINO only", "flipped left to right"),
            ("grid written column by column", "column by column"),
            ("stale grid of patch 14", "a grid of patch 14, cut to fit"),
            ("shifted by a row", "shifted by +1 row"),
        ]
    ),
)
def test_d3_names_the_arrangement_in_which_the_patches_were_stored(fault, arrangement, photographs, eyes, tmp_path):
    finding = judge(pack(tmp_path, photographs, [MISPLACED[fault](eyes, picture) for picture in photographs]), "D3")[
        "D3"
    ]
    assert finding.status == "fail" and f"{arrangement} explains" in finding.evidence, finding


def test_a_flip_of_the_latent_only_is_the_same_fault(drawings, eyes, tmp_path):
    """Drawings this time: flat, but their objects stand left and right."""
    finding = judge(
        pack(tmp_path, drawings, [clean(eyes, np.ascontiguousarray(picture[:, ::-1])) for picture in drawings]), "D3"
    )["D3"]
    assert finding.status == "fail" and "flipped left to right explains" in finding.evidence, finding


@pytest.mark.parametrize("kind", ["photographs", pytest.param("drawings", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", others_slow(RANDOMLY_CROPPED, ("random shifts",)))
def test_d3_names_random_crops(fault, kind, eyes, request, tmp_path):
    pictures = request.getfixturevalue(kind)
    found = judge(
        pack(tmp_path, pictures, [RANDOMLY_CROPPED[fault](eyes, picture) for picture in pictures]), "D3", "D10"
    )
    assert found["D3"].status == "fail" and "made of random crops" in found["D3"].evidence, found
    assert "different images" not in found["D10"].evidence or found["D10"].status != "fail", found


def test_a_centre_crop_is_not_called_random(photographs, eyes, tmp_path):
    patches = [MISPLACED["centre crop for DINO"](eyes, picture) for picture in photographs]
    finding = judge(pack(tmp_path, photographs, patches), "D3")["D3"]
    assert "random" not in finding.evidence, finding


def test_d2_counts_the_registers_among_the_patches(drawings, eyes, tmp_path):
    finding = judge(
        pack(tmp_path, drawings, [MISPLACED["registers stored as patches"](eyes, picture) for picture in drawings]),
        "D2",
    )["D2"]
    assert finding.status == "fail" and "the first 4 patch tokens of 64 images" in finding.evidence, finding


def test_a_logo_that_all_pictures_share_is_no_register(photographs, eyes, tmp_path):
    """At the first places tokens are alike in all images, as registers are; the content says that they lie right."""
    pictures = [picture.copy() for picture in photographs]
    for picture in pictures:
        picture[:20, :52] = (200, 20, 30)
        picture[3:14, 4:15] = 255
    found = judge(pack(tmp_path / "clean", pictures, [clean(eyes, picture) for picture in pictures]), "D2", "D3")
    assert found["D2"].status == found["D3"].status == "pass", found
    assert "look alike in all of them, but patches fit the latent as stored" in found["D2"].evidence


@pytest.mark.parametrize(
    ("stored", "shift", "advantage", "status"),
    [
        (0.4, 4, -9.0, "pass"),
        (0.4, 4, -1.0, "skip"),
        (0.2, 4, 9.0, "fail"),
        (0.2, 2, 9.0, "fail"),
        (0.01, 4, -9.0, "fail"),
    ],
)
def test_content_outranks_what_single_places_look_like(stored, shift, advantage, status):
    """Registers and a logo behind them: the shift is that of the registers alone."""
    others = {f"shifted by {n:+d}": -20.0 for n in range(1, 9)} | {f"shifted by {shift:+d}": advantage}
    found = Aligned({IDENTITY: stored} | dict.fromkeys(others, 0.1), others, 50)
    (finding,) = by_content(found, 4, "patch tokens of 50 images", "")
    assert finding.status == status and "4 patch tokens of 50 images" in finding.evidence


def test_d2_knows_the_cls_token_among_the_patches(photographs, eyes, tmp_path):
    tokens = [eyes.tokens(picture) for picture in photographs]
    everything = [some[: len(some) - 5] for some in tokens]  # from CLS on, registers and all
    finding = judge(pack(tmp_path, photographs, everything, [some[0] for some in tokens]), "D2")["D2"]
    assert (
        finding.status == "fail" and "in 64 of 64 images the first patch token is the CLS token" in finding.evidence
    ), finding


def test_a_few_images_are_enough_to_know_the_cls_token(photographs, eyes, tmp_path):
    few = photographs[:3]
    tokens = [MISPLACED["CLS stored as a patch"](eyes, picture) for picture in few]
    found = judge(pack(tmp_path, few, tokens, [some[0] for some in tokens]), "D2", "D3")
    assert found["D2"].status == "fail"
    assert found["D3"].status == "skip" and "3 images" in found["D3"].evidence


@pytest.mark.parametrize("kind", ["photographs", "drawings"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(builtin_eyes, id="builtin"),
        pytest.param(colour_eyes, id="colours", marks=pytest.mark.slow),
        pytest.param(lambda: colour_eyes(patch_size=14), id="colours of patch 14"),
    ],
)
def test_clean_sets_of_the_same_kind_pass(kind, make, request, tmp_path):
    pictures, seeing = request.getfixturevalue(kind), make()
    findings = judge(
        pack(tmp_path, pictures, [clean(seeing, picture) for picture in pictures]),
        "D1",
        "D2",
        "D3",
        "D6",
        "D7",
        "D8",
        "D9",
    )
    assert not {code for code, finding in findings.items() if finding.status == "fail"}, findings
    assert findings["D1"].status == findings["D2"].status == findings["D3"].status == "pass", findings


def test_patches_that_were_not_made_from_these_images_are_said_to_show_nothing(photographs, eyes, tmp_path):
    chance = np.random.default_rng(0)
    finding = judge(
        pack(tmp_path, photographs, [chance.normal(size=(np.prod(eyes.grid(picture)), 16)) for picture in photographs]),
        "D3",
    )["D3"]
    assert finding.status == "skip" and "too weak a signal" in finding.evidence, finding


def test_damaged_samples_among_sound_ones_break_no_rule(photographs, eyes, tmp_path):
    """Other widths, other axes, too few tokens, no numbers: D1 and D6 speak of them, D2 and D3 judge the rest."""
    patches = [clean(eyes, picture) for picture in photographs]
    patches[0], patches[1], patches[2], patches[3] = (
        patches[0][:, :7],
        patches[1][None],
        patches[2][:5],
        patches[3] * np.nan,
    )
    latents = {4: np.ones((4, 16, 16), np.float16), 5: np.ones((16, 16), np.float16)}
    found = judge(pack(tmp_path, photographs, patches, latents=latents), "D1", "D2", "D3", "D5", "D6", "D8", "D9")
    assert found["D1"].status == found["D6"].status == "fail"
    assert found["D2"].status == found["D3"].status == "pass"
    assert "60 images" in found["D2"].evidence and "58 images" in found["D3"].evidence


@pytest.mark.parametrize(
    ("stored", "rival", "advantage", "status", "said"),
    [
        (0.40, 0.10, -9.0, "pass", "next flipped left to right 10%, 9.0 standard errors behind"),
        (0.40, 0.39, -1.5, "skip", "next flipped left to right 39%, 1.5 standard errors behind: undecided"),
        (0.39, 0.40, 1.5, "skip", "undecided, 1.5 standard errors apart, 3 would decide"),
        (
            0.02,
            0.40,
            9.0,
            "fail",
            "flipped left to right explains 40% of the latent's variation, as stored 2% (9.0 standard errors apart)",
        ),
        (0.04, 0.01, -9.0, "skip", "too weak a signal"),
        (0.01, 0.04, 9.0, "skip", "too weak a signal"),
    ],
)
def test_d3_passes_and_fails_only_what_is_decided(stored, rival, advantage, status, said):
    found = Aligned({IDENTITY: stored, "flipped left to right": rival}, {"flipped left to right": advantage}, 50)
    (finding,) = verdict(found, None)
    assert finding.status == status and said in finding.evidence


@pytest.mark.parametrize(
    ("best", "explained", "advantage", "as_stored", "status", "said"),
    [
        (IDENTITY, 0.30, 9.0, 2, "fail", "of 60 images 58 fit a part of their latent better than all of it"),
        ("centre crop of 0.875", 0.15, 9.0, 2, "fail", "made of random crops"),
        ("shifted by +1", 0.30, 9.0, 2, "fail", "made of random crops"),
        ("shifted by +1", 0.15, 9.0, 2, "fail", "shifted by +1 explains 20%"),
        (IDENTITY, 0.30, 2.5, 2, "skip", "about 90 would decide"),
        (IDENTITY, 0.07, 2.5, 2, "skip", "more than the 96 that are looked at would be needed"),
        (IDENTITY, 0.30, 0.5, 2, "skip", "more images would decide"),
        (IDENTITY, 0.30, 9.0, 40, "skip", "more images would decide"),
    ],
)
def test_random_crops_are_named_only_where_they_explain_most(best, explained, advantage, as_stored, status, said):
    ahead = -1.0 if best == IDENTITY else 9.0
    other = "flipped left to right" if best == IDENTITY else best
    found = Aligned(
        {IDENTITY: 0.2 if best == IDENTITY else 0.1, other: 0.19 if best == IDENTITY else 0.2}, {other: ahead}, 60
    )
    (finding,) = verdict(found, OwnWindows(explained, 0.1, advantage, as_stored, 60))
    assert finding.status == status and said in finding.evidence, finding
