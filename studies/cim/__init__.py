"""CIM's own evidence on storybook: GRC and QIR as measures and as rewards."""
