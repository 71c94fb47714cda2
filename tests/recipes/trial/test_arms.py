import pytest

from groupcam_aug.callbacks.augmentation import PRESETS
from groupcam_aug.recipes.trial.arms import ARMS, RENAMED, Arm, read_arm


@pytest.mark.parametrize(
    "text, name",
    [
        ("fast", "fast"),
        ("fast,weights=gradient", "fast-weights"),
        ("fast,mask=other", "fast-other"),
        ("fast-other,mask=saliency", "fast"),
        ("paper,p=.5,at=target,baseline=zero", "fast"),
        ("fast, fill=other , p=0.50", "fast,fill=other"),
        ("fast,fill=other,weights=gradient,source=teacher", "fast-weights,source=teacher,fill=other"),
        ("fast,threshold=q0.6", "fast,threshold=q0.6"),
        ("fast,threshold=.5", "fast,threshold=0.5"),
        ("cutmix,p=1", "cutmix,p=1"),
        ("fast,warmup=none", "fast"),
        ("fast,p=1,warmup=2,strength=.5,clean_last=.1,inverse_share=.25,p_ramp=1", None),
    ],
)
def test_an_arm_has_one_name_however_it_is_written(text, name):
    arm = read_arm(text)
    assert name is None or arm.name == name
    assert read_arm(arm.name) == arm


def test_the_presets_are_the_callbacks():
    for preset, name in (("paper", "paper"), ("balanced", "balanced"), ("fast", "fast")):
        arm, settings = ARMS[name], PRESETS[preset]
        assert (arm.p, arm.at, arm.baseline) == (settings["p"], settings["mask_at"], settings["baseline"])
    settings = [str(arm.settings()) for arm in ARMS.values()]
    assert len(set(settings)) == len(settings)


@pytest.mark.parametrize(
    "text, told",
    [
        ("fats", "no arm 'fats'; did you mean 'fast'"),
        ("fast,fil=other", "takes no 'fil'; did you mean 'fill'"),
        ("fast,fill=black", "fill must be one of 'blur', 'mean', 'noise', 'other', got 'black'"),
        ("fast,p=x", "p must be a number, got 'x'"),
        ("fast,p=nan", "p must be a number, got 'nan'"),
        ("fast,p=2", r"p must be in \[0, 1\], got 2"),
        ("fast,warmup=.5", "warmup must be a whole number or 'none', got '.5'"),
        ("fast,warmup=-1", "warmup >= 0"),
        ("fast,p", "'p' is not key=value"),
        ("fast,p=", "'p=' is not key=value"),
        ("fast,p=1,p=1", "p is given twice"),
        ("fast,threshold=q7", "threshold must be 'mean'"),
        ("fast,threshold=2", r"threshold must be in \[0, 1\], got 2"),
        ("none,p=1", "none takes no 'p'"),
        ("cutmix,fill=blur", "cutmix takes no 'fill'"),
        ("erase,area=.9", r"area must be in \(0, 0.8\], got 0.9"),
        ("whole,source=ema", "source=ema would change nothing"),
        ("masks,weights=gradient", "weights=gradient would change nothing"),
        ("gradcam,groups=8", "groups=8 would change nothing"),
        ("fast,decay=.9", "decay=.9 would change nothing"),
        ("fast-other,inverse_share=.5", "leaves no place"),
        ("fast,inverse_share=.6,other_share=.6", "must be at most 1, got 1.2"),
        ("fast,labels=mixed", "labels=mixed needs fill=other"),
        ("fast,fill=other,labels=mixed,other_share=.5", "labels=mixed needs fill=other, and no inverse_share"),
    ],
)
def test_what_is_wrong_with_an_arm(text, told):
    with pytest.raises(ValueError, match=told):
        read_arm(text)


def test_options_that_no_arm_can_have():
    with pytest.raises(ValueError, match="groups >= 1"):
        Arm("a", "b", groups=0)


def test_old_names_say_the_new_ones():
    for old, new in RENAMED.items():
        assert new in ARMS and old not in ARMS
        with pytest.raises(ValueError, match=f"arm '{old},p=1': '{old}' is now called '{new}'; give {new},p=1"):
            read_arm(f"{old},p=1")


def test_arms_with_the_same_settings_are_the_same_arm():
    assert read_arm("fast,mask=centre").settings() == ARMS["fast-centre"].settings()
    assert ARMS["fast"].twin("other") == ARMS["fast-other"]
    assert read_arm("fast,map=oracle").name == "masks"
    assert "weights" not in ARMS["masks"].settings() and "decay" not in ARMS["fast"].settings()
    cost = {name: arm.cost for name, arm in ARMS.items()}
    assert cost["frozen"] < cost["none"] < cost["whole"] < cost["fast"] < cost["balanced"] < cost["paper"]
