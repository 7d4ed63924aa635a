import pytest

from gapssg.errors import InputError
from gapssg.runs.checkpoint import State


@pytest.mark.parametrize("facts", [None, 5, "text", [1]])
def test_facts_of_a_component_that_are_no_mapping_are_refused(facts: object):
    with pytest.raises(InputError, match="the checkpoint does not belong to this run"):
        State({"trainee": facts}, {}).component("trainee")
