import torch
from planted import parts, planted
from sklearn.linear_model import LogisticRegression

from cbm.concepts.prepare import class_name_bank
from cbm.methods import create_method


def test_zero_shot_is_clip():
    data, _ = planted()
    directions = torch.nn.functional.normalize(torch.randn(5, 24), dim=1)
    bank = class_name_bank(data.classes, "a {}", lambda texts: directions, "e")
    model, used = parts(create_method({"name": "zero_shot"}).build(data, bank, 100.0))
    torch.testing.assert_close(model(data.test.x), 100.0 * data.test.x @ directions.T)
    assert used.texts[0] == "a class 0"


def test_linear_probe_matches_scikit_learn_at_its_penalty():
    data, _ = planted()
    method = create_method({"name": "linear_probe", "l2_from": 1e-2, "l2_to": 1e-2, "l2_steps": 1})
    model, bank = parts(method.build(data, None, 1.0))
    assert bank is None
    x = data.train.x
    spread = (x - x.mean(0)).square().mean().sqrt()
    reference = LogisticRegression(C=1 / (len(x) * 1e-2), tol=1e-8, max_iter=10_000)
    reference.fit(((x - x.mean(0)) / spread).double().numpy(), data.train.y.numpy())
    ours = torch.softmax(model(data.test.x), dim=1)
    theirs = reference.predict_proba(((data.test.x - x.mean(0)) / spread).double().numpy())
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), atol=2e-3, rtol=1e-2)
