"""Neighbours among some units equal those of each unit by itself, without the units that were left out."""

import pytest

from monet.eval.inspection.objects import Inspection
from monet.eval.view.similar import neighbours


def test_neighbours_equal_those_of_the_objects(store):
    index = store.index
    units = [index.units.unit(group, number) for group in (0, 1) for number in [*range(0, 256, 3), 256, 258, 275, 280]]
    names = {unit.name for unit in units}
    found = neighbours(index, units, 5)
    assert any(one["contexts"] for one in found) and any(one["key"] for one in found if "key" in one)
    for unit, measures in zip(units, found, strict=True):
        assert ("key" in measures) == (unit.kind == "pair")
        for by, few in measures.items():
            every = Inspection(None, index).named(unit.name).neighbours(by, 400)
            wanted = [(one.expert.unit.name, one.similarity) for one in every if one.expert.unit.name in names][:5]
            assert [similarity for _, similarity in few] == pytest.approx([one for _, one in wanted], rel=5e-3)
            if by == "contexts":
                assert [name for name, _ in few] == [name for name, _ in wanted]
