from cbm.errors import did_you_mean, nearest


def test_nearest_finds_a_misspelling():
    assert nearest("vit_b23", ["vit_b32", "rn50", "vit_l14"])[0] == "vit_b32"
    assert nearest("entirely else", ["vit_b32"]) == []


def test_did_you_mean_lists_all_when_nothing_is_near():
    assert did_you_mean("labbo", ["labo", "zero_shot"]) == "did you mean 'labo'?"
    assert did_you_mean("qqq", ["labo", "zero_shot"]) == "choose one of labo, zero_shot"
    assert did_you_mean("qqq", []) == ""
