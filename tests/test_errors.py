from cbm.errors import UserError, did_you_mean, nearest


def test_nearest_finds_a_misspelling():
    assert nearest("vit_b23", ["vit_b32", "rn50", "vit_l14"])[0] == "vit_b32"
    assert nearest("entirely else", ["vit_b32"]) == []


def test_did_you_mean_lists_all_when_nothing_is_near():
    assert did_you_mean("labbo", ["labo", "zero_shot"]) == "did you mean 'labo'?"
    assert did_you_mean("qqq", ["labo", "zero_shot"]) == "choose one of labo, zero_shot"
    assert did_you_mean("qqq", []) == ""


def test_a_message_is_one_line_whatever_a_cell_holds():
    assert str(UserError("no class 'a\n b\u2028c\x85d\r\n'")) == "no class 'a b c d '"
